"""The augmentation may be searched: what is read, shown to each trial, and refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdcore import DataConfig
from kdcore.data.augmentation.steps import parse_augmentation
from kdcore.data.image_data import open_data
from kdcore.methods import CATALOGUE
from kdcore.teacher.teacher import teacher_folder
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment
from search.experiment.space.fields import NumberField
from search.experiment.space.point import VIEWS
from search.experiment.space.shared import shared_fields
from search.experiment.space.space import is_logarithmic
from search.experiment.space.trial_config import trial_config
from search.record.looks import images_of
from search.record.storage import Storage
from search.session.preflight import _warm_start_problems
from tests.cases import Case
from tests.records import write_record
from tests.synthetic import SMALL, finished_search
from tests.unit.search.searched_experiment import sampled, stored_again

MIXUP = {"mixup": {"alpha": {"low": 0.1, "high": 1.0}}}


def experiment_of(augmentation: Any, data: dict[str, Any] | None = None, **changes: Any) -> Any:
    seen = {"name": "digits", **(data or {}), "augmentation": augmentation}
    content = {**SMALL, "data": seen, "training": {"epochs": 3}}
    return parse_experiment(content | changes, "task.yaml")


def views(config: DataConfig) -> Any:
    return config.model_dump(mode="json").get("augmentation")


def test_presets_and_lists_are_choices_each_with_its_own_numbers() -> None:
    lists = [["flip", MIXUP], ["flip", "gray", {"mixup": {"alpha": {"low": 1, "high": 4}}}]]
    experiment = stored_again(experiment_of({"choices": [None, "patient", *lists]}))
    assert experiment.data == DataConfig(name="digits")
    names = [field.name for field in shared_fields(experiment)]
    assert names == [VIEWS, f"{VIEWS}.mixup.alpha.3", f"{VIEWS}.mixup.alpha.4"]
    seen = []
    for number, point in enumerate(sampled(experiment)):
        option = point[VIEWS]
        alphas = [value for name, value in point.items() if ".alpha." in name]
        config = trial_config(experiment, point)
        if option == "basic":
            assert (views(config.data), alphas, config.teacher_data) == (None, [], None)
        elif option == "patient":
            assert (views(config.data), alphas) == ("patient", [])
        else:
            (alpha,) = alphas
            gray = ["gray"] if "gray" in option else []
            assert (1 if gray else 0.1) <= alpha <= (4 if gray else 1)
            assert views(config.data) == ["flip", *gray, {"mixup": {"alpha": alpha}}]
        assert option == "basic" or config.teacher_data == experiment.data
        assert number > 0 or option == "basic"
        assert type(config).model_validate_json(config.model_dump_json()) == config
        seen.append(option)
    assert len(set(seen)) == 4
    # A number that is the same in all choices that have it is one field.
    twice = experiment_of({"choices": ["basic", ["flip", MIXUP], ["gray", MIXUP]]})
    _, alpha = shared_fields(stored_again(twice))
    assert alpha.name == f"{VIEWS}.mixup.alpha"
    assert isinstance(alpha, NumberField)
    assert [len(options) for _, options in alpha.beside] == [2]


def test_numbers_pairs_and_choices_within_steps_are_those_of_the_trial() -> None:
    steps = [
        {"random_resized_crop": {"scale": [{"low": 0.1, "high": 0.5, "log": False}, 1.0]}},
        {"rand_augment": {"magnitude": {"low": 3, "high": 12}, "num_ops": {"choices": [1, 3]}}},
        {"color_jitter": {"brightness": {"choices": [0.4, [0.5, 1.5]]}}},
        {"random_erasing": {"p": 0.2}},
        {"random_erasing": {"p": {"low": 0.3, "high": 0.6}}},
    ]
    experiment = stored_again(experiment_of(steps))
    first, *others = sampled(experiment)
    assert first == {
        f"{VIEWS}.random_resized_crop.scale.first": pytest.approx(0.3),
        f"{VIEWS}.rand_augment.magnitude": 6,
        f"{VIEWS}.rand_augment.num_ops": 1,
        f"{VIEWS}.color_jitter.brightness": 0.4,
        f"{VIEWS}.random_erasing_2.p": pytest.approx(0.18**0.5),
        "objective.1": first["objective.1"],
    }
    for point in others:
        low, magnitude, number, brightness, p = list(point.values())[:5]
        assert type(magnitude) is int
        assert brightness in (0.4, "[0.5, 1.5]")
        expected = [
            {"random_resized_crop": {"scale": [low, 1.0]}},
            {"rand_augment": {"magnitude": magnitude, "num_ops": number}},
            {"color_jitter": {"brightness": yaml.safe_load(str(brightness))}},
            {"random_erasing": {"p": 0.2}},
            {"random_erasing": {"p": p}},
        ]
        assert trial_config(experiment, point).data.augmentation == parse_augmentation(expected)
    assert is_logarithmic(experiment, f"{VIEWS}.rand_augment.magnitude")
    assert not is_logarithmic(experiment, f"{VIEWS}.random_resized_crop.scale.first")


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        ({"choices": ["basic"]}, "must be a list of two or more"),
        ({"choices": "basic"}, "must be a list of two or more"),
        ({"choices": ["basic", None]}, "has basic twice"),
        ({"choices": ["basic", ["flip"], ["flip"]]}, "has [flip] twice"),
        ({"choices": ["basic", "stronk"]}, "did you mean 'strong'?"),
        ({"choices": ["basic", ["flop"]]}, "did you mean 'flip'?"),
        ({"choices": ["basic", {"choices": ["strong", "patient"]}]}, "must be a preset's name"),
        ({"choices": ["basic", "strong"], "log": True}, "no other key is known"),
        ({"choises": ["basic", "strong"]}, "must be a preset's name or a list of steps"),
        ([{"mixup": {"alpha": {"low": 0, "high": 1}}}], "step mixup: alpha: low is 0, but"),
        ([{"mixup": {"alpha": {"low": 1, "high": 1}}}], "step mixup: alpha: low is 1.0, but must"),
        ([{"mixup": {"alpha": {"low": 0.1}}}], "step mixup: alpha.high: is missing"),
        ([{"mixup": {"alpha": {"lo": 1, "high": 2}}}], "alpha.lo: unknown key 'lo'; did you mean"),
        (
            [{"mixup": {"alpha": {"low": "x", "high": 2}}}],
            "alpha.low: is 'x', but must be a valid number",
        ),
        ([{"mixup": {"alpha": {"low": 0.001, "high": 1}}}], "alpha is 0.001, but must be greater"),
        ([{"mixup": {"alhpa": {"low": 0.1, "high": 1}}}], "did you mean 'alpha'?"),
        ([{"mixxup": {"alpha": {"low": 0.1, "high": 1}}}], "did you mean 'mixup'?"),
        ([{"mixup": {"alpha": {"choices": [1]}}}], "step mixup: alpha.choices: is [1], but"),
        ([{"flip": {"p": [{"low": 0.1, "high": 0.2}, 1, 2]}}], "step flip: p: is ["),
        ([{"flip": {"p": {"choices": [0.5, 2]}}}], "step flip: p is 2.0, but must be"),
        ([{"rand_augment": {"magnitude": {"low": 3.5, "high": 9}}}], "valid integer"),
        ([{"blur": {"kernel_size": {"low": 3, "high": 7}}}], "kernel_size is 4, but must be odd"),
        (
            [{"blur": {"kernel_size": 3, "sigma": [{"low": 1, "high": 3}, 2]}}],
            "the first must not be above the second",
        ),
        (
            [
                {
                    "random_erasing": {
                        "scale": [{"low": 0.1, "high": 0.5}, {"choices": [0.4, 0.9]}],
                    }
                }
            ],
            "scale is [0.5, 0.4], but the first",
        ),
        ([MIXUP, "flip"], "mixing must come last"),
    ],
    ids=str,
)
def test_each_mistake_has_one_message(augmentation: Any, words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment_of(augmentation)
    (problem,) = caught.value.problems
    assert problem.key == "data.augmentation"
    assert words in problem.message


def test_mistakes_beside_it_come_at_once() -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment_of({"choices": ["basic"]}, {"views": 0}, student="resnet9")
    keys = [problem.key for problem in caught.value.problems]
    assert sorted(keys) == ["data.augmentation", "data.views", "student"]


def test_choices_see_the_same_images_and_methods_learn_of_all_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = {"name": "image_folder", "root": str(tmp_path)}
    with pytest.raises(ExperimentError, match="pad_crop decodes the images once, and strong while"):
        experiment_of({"choices": ["pad_crop", "strong"]}, folder)
    for same in (["pad_crop", ["pad_crop", "gray"]], ["basic", "strong", "patient"]):
        experiment = stored_again(experiment_of({"choices": same}, folder))
        configs = [trial_config(experiment, point).data for point in sampled(experiment, 20)]
        assert {config.decodes_once for config in configs} == {same[0] == "pad_crop"}
        assert {config.image_size for config in configs} == {experiment.data.image_size}
        assert len({str(images_of(config)) for config in configs}) == 1
    monkeypatch.setattr(CATALOGUE["kd"], "mixing", "refused")
    for mixing in ({"choices": ["basic", "strong"]}, ["flip", MIXUP]):
        with pytest.raises(ExperimentError) as caught:
            experiment_of(mixing)
        (problem,) = caught.value.problems
        assert "objective has kd, but data.augmentation mixes images" in problem.message
    experiment_of({"choices": ["basic", "imagenet"]})


def test_split_digest_and_teacher_are_the_same_for_all_choices(tmp_path: Path) -> None:
    experiment = experiment_of({"choices": ["imagenet", "basic", ["flip", MIXUP]]})
    plain = experiment_of("imagenet")
    first = open_data(plain.data, tmp_path)
    folder = teacher_folder(plain.teacher, first, tmp_path)
    recipes = set()
    for point in sampled(experiment, 12):
        config = trial_config(experiment, point)
        data = open_data(config.data, tmp_path)
        assert data.digest == first.digest
        for split in ("train", "heldout", "test"):
            ours, theirs = getattr(data, split), getattr(first, split)
            assert ours.image_ids.equal(theirs.image_ids)
        assert (data.mean, data.std) == (first.mean, first.std)
        seen = open_data(config.data_of_teacher, tmp_path)
        assert teacher_folder(config.teacher, seen, tmp_path) == folder
        recipes.add(data.train.view_recipe)
    assert len(recipes) > 2, "each has cached outputs of its own"


def test_the_example_of_the_readme_is_read() -> None:
    text = Path("experiments/README.md").read_text().partition("## Searching recipe and views")[2]
    (example,) = re.findall(r"```yaml\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    content = yaml.safe_load(example)
    experiment = stored_again(
        experiment_of(
            content["data"]["augmentation"], content["data"], training=content["training"]
        )
    )
    assert len(shared_fields(experiment)) == 7


def test_a_search_starts_from_others_whatever_they_searched_of_the_views(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    augmentations: dict[str, Any] = {
        "plain": "strong",
        "searched": {"choices": ["basic", "strong"]},
    }
    for name, augmentation in augmentations.items():
        content = {"data": {"name": "digits", "augmentation": augmentation}}
        write_record(storage, finished_search((), content, name=name))

    def starts_from(name: str, augmentation: Any, **data: Any) -> bool:
        search = {"trials": 4, "warm_start": [name]}
        experiment = experiment_of(augmentation, data, search=search)
        told = [problem.message for problem in _warm_start_problems(experiment, storage)]
        assert not told or "had other data" in told[0]
        return not told

    with Case("what is searched is told by each trial, and so may differ"):
        assert starts_from("searched", {"choices": ["strong", "imagenet"]})
        assert starts_from("plain", {"choices": ["basic", "strong"]})
    with Case("what is not must be the same"):
        assert not starts_from("plain", "basic")
        assert not starts_from("searched", {"choices": ["basic", "strong"]}, split_seed=1)
