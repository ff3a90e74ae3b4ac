"""A point of the search space: the choices for one trial, by name."""

from typing import Any, TypeGuard

from kdcore.contract.published import Benchmark
from kdcore.data.config import Judge
from search.experiment.schema import CONTROL
from search.experiment.searched import Option
from search.experiment.space.published import published_settings

STUDENT = "student"
TEACHER = "teacher"
TRAINING = "training."
LEARNING_RATE = f"{TRAINING}learning_rate"
VIEWS = "data.augmentation"
IS_CONTROL = "control"
NUMBER = "trial"
Point = dict[str, Any]
"""A trial's choices: `objective.1` (a method), `kd.temperature`, `training.learning_rate`,
`data.augmentation`, `data.augmentation.mixup.alpha`, `student` where several may learn, `teacher`
where there are several and a method needs one, and `fitnet.layers.2` for a choice that only the
second pair of student and teacher has. A trial that runs also has its number, `trial`."""


SLOT = "objective."


def slot(number: int) -> str:
    return f"{SLOT}{number}"


def plain_name(key: str) -> str:
    """The name of a point's setting, without the number of the pair that alone has the choice.

    `fitnet.layers.2` is `fitnet.layers`.
    """
    head, _, last = key.rpartition(".")
    return head if "." in head and last.isdigit() else key


def settings_of(point: Point) -> frozenset[tuple[str, Option]]:
    """What a point chooses; equal ones are trained the same."""
    return frozenset((k, value) for k, value in point.items() if k not in (IS_CONTROL, NUMBER))


def option_in_words(value: Option) -> str:
    """A setting's value for tables and pictures."""
    return "null" if value is None else str(value)


def is_same(option: Option, value: object) -> bool:
    """Whether a value is an option; yes and no are no numbers."""
    return option == value and isinstance(option, bool) == isinstance(value, bool)


def is_number(value: Option) -> TypeGuard[int | float]:
    """Whether a setting is a number; yes and no are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_shared(key: str) -> bool:
    """Whether a point's setting is of recipe or views, which no method has alone."""
    return key.startswith((TRAINING, VIEWS))


def recipe_in_words(point: Point) -> str:
    """What was chosen of recipe and views, like `learning_rate=0.03, augmentation=strong`."""
    found = {short_name(key): value for key, value in point.items() if is_shared(key)}
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={option_in_words(value)}"
        for name, value in found.items()
    )


def short_name(key: str) -> str:
    """A point's setting without what it is a setting of: `temperature`, `learning_rate`,
    `mixup.alpha`."""
    name = plain_name(key)
    return (
        name.removeprefix(f"{VIEWS}.") if name.startswith(f"{VIEWS}.") else name.partition(".")[2]
    )


def with_published(
    point: Point, method: str, benchmark: Benchmark | None, judge: Judge | None = None
) -> Point:
    """The same student, recipe and teacher, with one method as published and no other."""
    slots = sorted(key for key in point if key.startswith(SLOT))
    recipe = {
        key: value for key, value in point.items() if key in (STUDENT, TEACHER) or is_shared(key)
    }
    settings = published_settings(method, benchmark, judge=judge)
    return (
        recipe
        | dict.fromkeys(slots, CONTROL)
        | {slots[0]: method}
        | {f"{method}.{name}": value for name, value in settings.items()}
    )
