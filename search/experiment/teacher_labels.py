"""What several teachers are called: by their networks, and by what tells those of one apart."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from kdcore import EnsembleConfig, StudentConfig, TeacherConfig


@lru_cache
def teacher_labels(teachers: tuple[TeacherConfig | EnsembleConfig, ...]) -> tuple[str, ...]:
    """The name of each teacher's network, like `resnet20`, and where several have one, as many of
    their keys as tell them apart, like `resnet20 (epochs=60)`.

    Raises:
        ValueError: one is listed twice.
    """
    labels = []
    for place, teacher in enumerate(teachers):
        if teacher in teachers[:place]:
            raise ValueError(f"lists the same {teacher.name} twice; list each teacher once")
        alike = [each for each in teachers if each.name == teacher.name]
        label = teacher.name
        if len(alike) > 1:
            label += f" ({_differences(alike)[alike.index(teacher)]})"
        labels.append(label)
    return tuple(labels)


def _differences(teachers: Sequence[TeacherConfig | EnsembleConfig]) -> list[str]:
    """Of each, the first keys in which they differ, as many as it takes."""
    found = [_details(teacher) for teacher in teachers]
    chosen: list[str] = []
    words = [""] * len(found)
    for key in {key: None for details in found for key in details}:
        tried = [
            ", ".join(f"{each}={details.get(each, 'none')}" for each in (*chosen, key))
            for details in found
        ]
        if len(set(tried)) > len(set(words)):
            chosen.append(key)
            words = tried
    return words


def _details(teacher: TeacherConfig | EnsembleConfig) -> dict[str, Any]:
    """What two teachers of one network may differ in, in the order in which it is looked at; of an
    ensemble with the number of the network."""
    if isinstance(teacher, EnsembleConfig):
        numbered = enumerate(map(_details, teacher.ensemble), start=1)
        return {
            f"{key} {number}": value for number, each in numbered for key, value in each.items()
        }
    network = StudentConfig(backbone=teacher.backbone, weights=teacher.weights)
    start = network.label.removeprefix(network.backbone).strip(" ()") or "fresh"
    recipe = {} if teacher.training is None else teacher.training.model_dump(mode="json")
    own = teacher.model_dump(mode="json", include={"seed", "mean", "std"})
    return {"weights": start, **recipe, **own, "file": str(teacher.weights)}
