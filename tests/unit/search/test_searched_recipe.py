"""Any key of the students' recipe may be searched: what is read, chosen, used and refused."""

import hashlib
import json
import math
import typing
from pathlib import Path
from typing import Any

import pytest

from kdcore import Recipe
from kdcore.training.named_recipes import NAMED_RECIPES
from kdcore.training.recipe import NAMED
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment, read_experiment
from search.experiment.schema import Experiment, Resources
from search.experiment.space.fields import ChoiceField, NumberField
from search.experiment.space.point import (
    LEARNING_RATE,
    TRAINING,
    Point,
    recipe_in_words,
    with_published,
)
from search.experiment.space.shared import shared_fields
from search.experiment.space.space import Dimensions, Space, is_logarithmic
from search.experiment.space.trial_config import trial_config
from tests.cases import Case
from tests.synthetic import SMALL
from tests.unit.search.searched_experiment import sampled, space_of, stored_again

FIXED = {
    *("epochs", "preparation_on_top", "sync_batch_norms"),
    *("acceleration", "compile", "cuda_graph"),
}

# Beside which a key has an effect, where that is not beside the defaults.
BESIDE: dict[str, dict[str, Any]] = {
    "betas": {"optimizer": "lamb"},
    "milestones": {"schedule": "step"},
    "gamma": {"schedule": "step"},
    "decay_share": {"schedule": "wsd"},
}
PRETRAINED = {"backbone": "resnet8", "weights": "w.pt"}
RANGES: dict[str, tuple[float, float]] = {
    "frozen_stages": (0, 2),
    "batch_size": (16, 128),
    "accumulation": (1, 4),
    "warmup_epochs": (0.0, 2.0),
    "minimum_learning_rate": (0.0, 0.01),
}


def experiment_of(training: dict[str, Any], **changes: Any) -> Experiment:
    content = {**SMALL, "training": {"epochs": 8, **training}}
    return parse_experiment(content | changes, "task.yaml")


def choices_of(key: str) -> list[Any]:
    """Two legal values of a key."""
    annotation = Recipe.model_fields[key].annotation
    if key in RANGES:
        return list(RANGES[key])
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    if annotation is bool:
        return [False, True]
    if key == "betas":
        return [(0.9, 0.99), (0.8, 0.999)]
    if key == "milestones":
        return [None, (4.0, 6.0)]
    return [0.02, 0.5]


def test_every_key_is_searched_or_told_why_it_is_not() -> None:
    for key in Recipe.model_fields:
        values = choices_of(key)
        forms: list[Any] = [values, {"choices": values}]
        if all(type(value) in (int, float) for value in values):
            low, high = values
            forms.append({"low": low, "high": high, "log": low > 0})
        for form in forms:
            with Case(f"{key}: {form}"):
                training = {**BESIDE.get(key, {}), key: form}
                if key in FIXED:
                    with pytest.raises(ExperimentError) as caught:
                        experiment_of(training)
                    (problem,) = caught.value.problems
                    assert problem.key == f"training.{key}"
                    assert "but must be one value" in problem.message
                    continue
                experiment = stored_again(experiment_of(training, student=PRETRAINED))
                (field,) = shared_fields(experiment)
                assert field.name == f"training.{key}"
                seen = set()
                for number, point in enumerate(sampled(experiment)):
                    recipe = trial_config(experiment, point).training
                    value = getattr(recipe, key)
                    seen.add(value)
                    if isinstance(field, NumberField):
                        assert field.low <= value <= field.high
                        assert type(value) is (int if field.integer else float)
                        assert field.integer == (Recipe.model_fields[key].annotation is int)
                        middle = (low + high) / 2 if low == 0 else math.sqrt(low * high)
                        if number == 0:
                            assert value == (round(middle) if field.integer else middle)
                        assert is_logarithmic(experiment, field.name) == (low > 0)
                    else:
                        assert value in values
                        assert number > 0 or value == values[0]
                    # All else is as it was.
                    plain = {"epochs": 8, **BESIDE.get(key, {}), key: value}
                    assert recipe == Recipe.model_validate(plain)
                assert len(seen) >= min(3, len(values))


def test_a_key_is_proposed_and_passed_only_where_it_has_an_effect() -> None:
    experiment = experiment_of(
        {
            "momentum": [0, 0.9],  # the order of the file does not matter
            "nesterov": [False, True],
            "optimizer": ["sgd", "adamw"],
            "betas": [0.9, {"low": 0.9, "high": 0.999}],
            "schedule": ["cosine", "step", "constant"],
            "gamma": {"low": 0.05, "high": 0.5},
            "milestones": [2, 5],
            "minimum_learning_rate": [0, 0.001],
        }
    )
    first, *others = space_of(stored_again(experiment)).first_points()
    assert first["training.optimizer"] == "sgd"
    assert not {"training.betas.second", "training.gamma", "training.nesterov"} & first.keys()
    assert [point.keys() - first.keys() for point in others] == [set()]
    found = sampled(experiment, 200)
    assert len({tuple(sorted(point)) for point in found}) == 9, "three of one, three of the other"
    for point in found:
        names = {name.removeprefix(TRAINING) for name in point}
        optimizer, schedule = point["training.optimizer"], point["training.schedule"]
        assert ("momentum" in names) == (optimizer == "sgd")
        assert ("nesterov" in names) == (point.get("training.momentum") == 0.9)
        assert ("betas.second" in names) == (optimizer == "adamw")
        assert ("gamma" in names) == (schedule == "step")
        assert ("minimum_learning_rate" in names) == (schedule != "constant")
        recipe = trial_config(experiment, point).training
        assert recipe.milestones == ((2, 5) if schedule == "step" else None)
        assert recipe.betas == (0.9, point.get("training.betas.second", 0.999))
        assert recipe.nesterov == point.get("training.nesterov", False)


def test_what_a_named_recipe_says_is_searched_beside_it_or_by_its_name() -> None:
    beside = experiment_of(
        {"recipe": "cifar_240", "schedule": ["step", "cosine"], "optimizer": ["sgd", "lamb"]}
    )
    assert NAMED not in stored_again(beside).model_dump()["training"]
    for point in sampled(beside):
        recipe = trial_config(beside, point).training
        step = point["training.schedule"] == "step"
        assert recipe.milestones == ((5, 6, 7) if step else None)
        assert recipe.weight_decay == 5e-4
    by_name = experiment_of({"recipe": list(NAMED_RECIPES), "weight_decay": [1e-5, 1e-3]})
    assert stored_again(by_name).training.epochs == 8
    seen = set()
    for point in sampled(by_name):
        recipe = trial_config(by_name, point).training
        chosen = {NAMED: point["training.recipe"], "weight_decay": point["training.weight_decay"]}
        assert recipe == Recipe.model_validate({"epochs": 8, **chosen})
        seen.add(recipe.batch_size)
    assert seen == {64, 256}
    # What only some of them use is proposed beside these.
    some = experiment_of({"recipe": ["cifar_240", "quick"], "gamma": [0.1, 0.2]})
    for point in sampled(some):
        assert ("training.gamma" in point) == (point["training.recipe"] == "cifar_240")


@pytest.mark.parametrize(
    ("training", "key", "words"),
    [
        ({"label_smoothing": {"low": 0, "high": 0.2}}, "label_smoothing", "write log: false"),
        ({"weight_decay": {"low": 2, "high": 1}}, "weight_decay", "must be below high, which is 1"),
        ({"weight_decay": {"low": 1, "high": 1}}, "weight_decay", "must be below high, which is 1"),
        ({"weight_decay": {"low": 1}}, "weight_decay.high", "is missing"),
        ({"weight_decay": {"low": 1, "high": None}}, "weight_decay.high", "is missing"),
        ({"weight_decay": {"lo": 1, "high": 2}}, "weight_decay.lo", "did you mean 'low'?"),
        ({"weight_decay": {"a": 1}}, "weight_decay", "must be a range, like {low: 0.01"),
        ({"weight_decay": {"low": 1, "high": 2, "log": 3}}, "weight_decay.log", "true or false"),
        ({"momentum": {"low": 0.5, "high": 1}}, "momentum.high", "is 1, but"),
        ({"momentum": {"low": 0.5, "high": "x"}}, "momentum.high", "is 'x', but"),
        ({"batch_size": {"low": 8.5, "high": 16}}, "batch_size.low", "valid integer"),
        ({"optimizer": {"low": 1, "high": 2}}, "optimizer", "are no numbers; list choices"),
        ({"nesterov": {"low": 0, "high": 1}}, "nesterov", "are no numbers; list choices"),
        ({"optimizer": ["sgd", "adam"]}, "optimizer.1", "is 'adam', but"),
        ({"optimizer": {"choices": ["sgd", "adam"]}}, "optimizer.choices.1", "is 'adam', but"),
        ({"optimizer": {"choices": "sgd"}}, "optimizer.choices", "must be a list"),
        ({"optimizer": {"choices": [], "log": True}}, "optimizer.log", "Known here: choices"),
        ({"optimizer": ["sgd"]}, "optimizer", "choices are two or more"),
        ({"optimizer": []}, "optimizer", "choices are two or more"),
        ({"momentum": [0.9, 0.90]}, "momentum", "lists 0.9 twice"),
        ({"betas": [[0.9, 0.99], [0.9, 2]], "optimizer": "adamw"}, "betas.1.1", "is 2, but"),
        ({"betas": [2, {"low": 0.9, "high": 0.99}]}, "betas.0", "is 2, but"),
        (
            {"milestones": [2, {"low": 3, "high": 4}], "schedule": "step"},
            "milestones",
            "list several lists",
        ),
        ({"recipe": ["quick", "qick"]}, "recipe.1", "did you mean 'quick'?"),
        ({"momentum": [0.8, 0.9], "optimizer": "lamb"}, "", "momentum is 0.8 or 0.9, but only"),
        ({"gamma": [0.1, 0.2]}, "", "and schedule is cosine; leave it out"),
        (
            {"betas": [0.9, 0.9], "optimizer": ["sgd", "sgd"]},
            "optimizer",
            "lists sgd twice",
        ),
        (
            {"milestones": [2], "schedule": ["cosine", "constant"]},
            "",
            "milestones is [2], but only schedule step uses it, and schedule is cosine or constant",
        ),
        (
            {"layer_decay": [0.5, 0.9], "linear_probe": True},
            "",
            "only linear_probe false uses it, and linear_probe is true",
        ),
        (
            {"optimizer": ["adamw", "lamb"], "momentum": 5, "nesterov": True},
            "momentum",
            "is 5, but",
        ),
        (
            {"learning_rate": [0.1, 0.2], "frozen_stages": 1, "linear_probe": True},
            "",
            "frozen_stages is 1, but linear_probe is true, which trains only the head",
        ),
        (
            {"learning_rate": [0.1, 0.2], "betas": [0.9, 0.99]},
            "",
            "betas is [0.9, 0.99], but only optimizer adamw or lamb uses it, and optimizer is sgd",
        ),
        (
            {"learning_rate": [0.1, 0.2], "nesterov": True, "momentum": 0},
            "",
            "nesterov is true, but needs momentum > 0, and momentum is 0",
        ),
        ({"warmup_epochs": [1, 8]}, "", "warmup_epochs is 8.0, but must be below epochs"),
        (
            {"learning_rate": [0.1, 0.01], "minimum_learning_rate": [0, 0.05]},
            "",
            "minimum_learning_rate is 0.05, but must be below learning_rate, which is 0.01",
        ),
        (
            {
                "warmup_epochs": {"low": 1, "high": 5},
                "schedule": ["cosine", "step"],
                "milestones": [[6, 7], [3, 6]],
            },
            "",
            "they must rise from above warmup_epochs, which is 5",
        ),
        ({"optimizer": ["sgd", "lamb"], "batch_size": 1}, "batch_size", "is 1, but"),
        ({"optimizer": ["sgd", "lamb"], "bach_size": 1}, "bach_size", "did you mean 'batch_size'?"),
        (
            {"linear_probe": [False, True]},
            None,
            "training.linear_probe is true, but student resnet8 begins with fresh weights",
        ),
    ],
    ids=str,
)
def test_each_mistake_has_one_message(
    training: dict[str, Any], key: str | None, words: str
) -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment_of(training)
    (problem,) = caught.value.problems
    place = "" if key is None else f"training.{key}" if key else "training"
    assert problem.key == place
    assert words in problem.message


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment_of(
            {"optimizer": ["sgd", "x"], "momentum": [0.9, 2], "batch_size": 0, "epochs": [1, 2]},
            student="resnet9",
        )
    assert {problem.key for problem in caught.value.problems} == {
        *("training.optimizer.1", "training.momentum.1", "training.batch_size"),
        *("training.epochs", "student"),
    }
    missing = {"recipe": ["quick", "cifar_240"]}
    with pytest.raises(ExperimentError, match=r"training\.epochs: is missing, but named recipes"):
        parse_experiment(
            {**experiment_of({}).model_dump(mode="json"), "training": missing}, "task.yaml"
        )


# Of version 0.2.0: the stored experiment, and the identities of a control and of kd.
KD: Point = {
    "objective.1": "kd",
    "kd.weight": 0.9,
    "kd.cross_entropy": 0.1,
    "kd.temperature": 4.0,
    "kd.standardize": False,
}
PINNED = {
    "quickstart": "38f380614fae4936",
    "digits_all_methods": "b930933767ad9a22",
    "a searched rate": "b33b63fa9ba05b1b",
}
SLOTS = (
    "none kd dkd nkd wsld wttm ctkd dist",
    "none fitnet at sp cc vid rkd pkt ab ft fsp nst crd ofd itrd reviewkd mgd srd",
)


def _with_the_methods_of_0_2_0(experiment: Experiment) -> Experiment:
    """`digits_all_methods` as it was: later methods have joined the file's lists."""
    objective = tuple(tuple(slot.split()) for slot in SLOTS)
    known = {method for slot in objective for method in slot}
    together = tuple(each for each in experiment.search.combinations if known.issuperset(each))
    update: dict[str, Any] = {"trials": 31, "combinations": together}
    search = experiment.search.model_copy(update=update)
    return experiment.model_copy(update={"objective": objective, "search": search})


def test_plain_experiments_and_a_searched_rate_are_what_they_were() -> None:
    rates: dict[str, Any] = {
        "recipe": "imagenet_100",
        "epochs": 30,
        "learning_rate": {"low": 0.01, "high": 0.3},
        "ema_decay": 0.999,
        "nesterov": True,
    }
    experiments = {
        name: read_experiment(Path(f"experiments/{name}.yaml"))
        for name in ("quickstart", "digits_all_methods")
    }
    experiments["a searched rate"] = experiment_of(
        rates,
        data={"name": "digits", "augmentation": "strong", "train_images": 300},
        teacher={"backbone": "resnet20", "training": {"recipe": "cifar_240"}},
        search=SMALL["search"] | {"asha": {"grace_epochs": 1, "reduction": 3}},
    )
    experiments["digits_all_methods"] = _with_the_methods_of_0_2_0(
        experiments["digits_all_methods"]
    )
    for name, experiment in experiments.items():
        with Case(name):
            slots = {
                f"objective.{number}": "none" for number in range(1, len(experiment.objective) + 1)
            }
            searched = experiment.training.space is not None
            rates_of = [{LEARNING_RATE: rate} if searched else {} for rate in (0.05, 0.1)]
            points = [{"control": True} | slots | rates_of[0], slots | KD | rates_of[1]]
            on_the_cpu = experiment.model_copy(update={"resources": Resources(gpus=0)})
            content = [
                on_the_cpu.model_dump(mode="json"),
                *(trial_config(experiment, point).identity for point in points),
            ]
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
            assert digest == PINNED[name]


def test_the_size_of_a_space_and_of_its_largest_trial() -> None:
    experiment = experiment_of(
        {
            "optimizer": ["sgd", "adamw", "lamb"],
            "momentum": {"low": 0.5, "high": 0.9},
            "nesterov": [False, True],
            "betas": [[0.9, 0.99], [0.9, 0.999]],
            "weight_decay": {"low": 1e-5, "high": 1e-2},
        }
    )
    space = space_of(experiment)
    fields = {
        ("resnet8", "resnet20", "none"): (),
        ("resnet8", "resnet20", "kd"): (
            NumberField("kd.weight", 0.1, 10, True, False, 1.0),
            ChoiceField("kd.cross_entropy", (0.1,), 0.1),
        ),
    }
    space = Space(space.students, space.teachers, space.slots, fields, space.shared)
    whole, most = space.size()
    assert whole == Dimensions(3, 4)  # kd, optimizer, nesterov, betas
    assert most == Dimensions(3, 3)  # beside sgd
    assert str(most) == "6 dimensions (3 numbers, 3 choices)"
    described = dict(space.describe())
    assert described["training.momentum"] == (
        "0.5 to 0.9, logarithmic; with training.optimizer sgd"
    )
    assert described["training.betas"] == (
        "[0.9, 0.99], [0.9, 0.999]; with training.optimizer adamw or lamb"
    )


def test_a_published_setting_has_the_recipe_of_its_control() -> None:
    control: Point = {
        "control": True,
        "training.optimizer": "sgd",
        "training.ema_decay": None,
        "training.weight_decay": 0.00012346,
        "data.augmentation": "strong",
        "data.augmentation.mixup.alpha.2": 0.25,
        "objective.1": "none",
    }
    published = with_published(control, "kd", "cifar")
    shared = {name for name in control if name.startswith(("training", "data"))}
    assert {name: published[name] for name in shared} == {name: control[name] for name in shared}
    assert published["objective.1"] == "kd"
    assert recipe_in_words(published) == (
        "optimizer=sgd, ema_decay=null, weight_decay=0.0001235, augmentation=strong, "
        "mixup.alpha=0.25"
    )
