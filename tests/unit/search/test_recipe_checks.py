"""What recipes and views ask for in vain is told of, or refused."""

from pathlib import Path

import pytest

from search.errors import ExperimentError
from search.record.storage import Storage
from search.session.cautions import cautions
from search.session.preflight import plan
from tests.unit.search.test_searched_recipe import experiment_of
from tests.unit.search.test_searched_views import MIXUP
from tests.unit.search.test_searched_views import experiment_of as with_views


def test_a_direction_in_which_nothing_changes_is_told_of() -> None:
    both = {"kd.cross_entropy": (0, 0.1, 1)}
    rate = {"learning_rate": [0.05, 0.1]}
    told = cautions(experiment_of(rate, narrow=both))
    assert told[0].startswith(
        "kd.weight, kd.cross_entropy and training.learning_rate are searched together"
    )
    for training, narrow in (
        ({}, both),
        (rate, {}),
        (rate, {"kd.cross_entropy": (0.1,)}),
        (rate, both | {"kd.weight": (0.9,)}),
    ):
        found = cautions(experiment_of(training, narrow=narrow))
        assert not any("searched together" in caution for caution in found)


def test_early_stopping_is_warned_of_where_any_schedule_falls() -> None:
    for schedules, falling in (
        (["constant", "wsd", "step", "cosine"], "step or cosine"),
        (None, "cosine"),
    ):
        training = {} if schedules is None else {"schedule": schedules}
        (caution,) = cautions(experiment_of(training))
        assert caution.startswith(f"training.schedule is {falling} over all 8 epochs")
    assert cautions(experiment_of({"schedule": "constant", "momentum": [0.8, 0.9]})) == []


def test_views_of_a_single_trial_are_told_of() -> None:
    (told,) = cautions(with_views(["flip", MIXUP], search={"trials": 4, "asha": None}))
    assert told.startswith("data.augmentation.mixup.alpha is a range, so that nearly every trial")
    alone = {"search": {"trials": 4, "asha": None}}
    for experiment in (
        with_views(["flip", MIXUP], cache=None, **alone),
        with_views({"choices": ["basic", "strong"]}, **alone),
    ):
        assert cautions(experiment) == []


def test_what_images_or_networks_cannot_have_is_refused_of_any_choice(tmp_path: Path) -> None:
    experiment = with_views(
        {"choices": ["basic", [{"blur": {"kernel_size": {"choices": [3, 17]}}}]]},
        student="vgg8",
        training={"epochs": 3, "drop_path": [None, 0.1, 0.2]},
    )
    with pytest.raises(ExperimentError) as caught:
        plan(experiment, Storage(str(tmp_path)), "task.yaml")
    drop_path, blur = caught.value.problems
    assert (drop_path.key, blur.key) == ("training.drop_path", "data.augmentation")
    assert drop_path.message.startswith("vgg8: drop_path is 0.1, but the network has no residual")
    assert blur.message.startswith("step blur: kernel_size is 17, but must be below 16 for images")
