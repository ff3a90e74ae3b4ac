"""What cannot be where students learn without labels, and a judge of features is set."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kdcore.data.config import Judge
from kdcore.errors import ConfigError
from kdcore.methods import CATALOGUE
from kdcore.teacher.config import AnyTeacher, EnsembleConfig
from kdcore.training.recipe import BaseRecipe

if TYPE_CHECKING:
    from kdcore.contract.method import Params


def cannot_be_judged(judge: Judge, method: str, params: "Params") -> str:
    """Why a method cannot teach where a judge is set; empty if it can."""
    if CATALOGUE[method].reuses_classifier:
        reason = "keeps its teacher's classifier", "puts its own on the features"
    elif CATALOGUE[method].reads_labels(params):
        reason = "reads labels", "has students learn without"
    else:
        return ""
    return (
        f"{method} {reason[0]}, but data.judge is {judge}, which {reason[1]}; use a method that "
        f"compares the networks' outputs alone, like kd or fitnet"
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
