"""What cannot be where students learn without labels, and a judge of features is set."""

from collections.abc import Iterable

from kdcore.data.config import Judge
from kdcore.errors import ConfigError
from kdcore.teacher.config import AnyTeacher, EnsembleConfig
from kdcore.training.recipe import BaseRecipe


def reading_labels(judge: Judge, method: str) -> str:
    """Why a method that reads labels cannot teach where a judge is set."""
    return (
        f"{method} reads labels, but data.judge is {judge}, with which students learn without; use "
        f"a method that compares the networks' outputs alone, like kd or fitnet"
    )


def check_without_labels(judge: Judge, teachers: Iterable[AnyTeacher], recipe: BaseRecipe) -> None:
    """Refuses what cannot be where features are judged that were learned without labels.

    Raises:
        ConfigError: a teacher has no features of its own, or the features do not learn.
    """
    for teacher in teachers:
        if isinstance(teacher, EnsembleConfig):
            raise ConfigError(
                f"data.judge is {judge}, but the ensemble of {teacher.name} has no features to "
                f"judge; list its teachers as teachers of their own"
            )
        if teacher.assistants:
            raise ConfigError(
                f"data.judge is {judge}, but the assistants of {teacher.backbone} learn from "
                f"labels too; leave them out"
            )
    if recipe.linear_probe:
        raise ConfigError(
            f"training.linear_probe is true, but data.judge is {judge}, which judges the features "
            f"that then stay as they are; leave it out"
        )
