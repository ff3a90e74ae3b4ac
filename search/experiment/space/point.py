"""A point of the search space: the choices for one trial, by name."""

from typing import Any

from kdcore.contract.published import Benchmark
from search.experiment.schema import CONTROL, Option
from search.experiment.space.published import published_settings

STUDENT = "student"
LEARNING_RATE = "training.learning_rate"
IS_CONTROL = "control"
NUMBER = "trial"
Point = dict[str, Any]
"""A trial's choices: `objective.1` (a method), `kd.temperature`, `training.learning_rate`,
`student` where several may learn, and `fitnet.layers.2` for a choice that only the second of them
has. A trial that runs also has its number, `trial`."""


SLOT = "objective."


def slot(number: int) -> str:
    return f"{SLOT}{number}"


def plain_name(key: str) -> str:
    """The name of a point's setting, without the number of the student that alone has the choice.

    `fitnet.layers.2` is `fitnet.layers`.
    """
    head, _, last = key.rpartition(".")
    return head if "." in head and last.isdigit() else key


def settings_of(point: Point) -> frozenset[tuple[str, Option]]:
    """What a point chooses; equal ones are trained the same."""
    return frozenset((k, value) for k, value in point.items() if k not in (IS_CONTROL, NUMBER))


def is_number(value: Option) -> bool:
    """Whether a setting is a number; yes and no are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_published(point: Point, method: str, benchmark: Benchmark | None) -> Point:
    """The same student and recipe, with one method as published and no other."""
    slots = sorted(key for key in point if key.startswith(SLOT))
    recipe = {key: value for key, value in point.items() if key in (STUDENT, LEARNING_RATE)}
    settings = published_settings(method, benchmark)
    return (
        recipe
        | dict.fromkeys(slots, CONTROL)
        | {slots[0]: method}
        | {f"{method}.{name}": value for name, value in settings.items()}
    )
