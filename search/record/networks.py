"""What is known of a search's networks: in which precision they compute, and its teachers."""

import re
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from kdcore.execution.execution import Execution
from search.experiment.searched import Option


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Executions(_Record):
    """Precision and layout of a search's networks, the same on all its machines.

    Args:
        students: by name, when they train.
        teacher: of the first teacher, when it is asked.
        other_teachers: by network, those of the others.
    """

    students: dict[str, Execution]
    teacher: Execution
    other_teachers: dict[str, Execution] = {}

    def of_teacher(self, network: str) -> Execution:
        """That of a teacher's network."""
        return self.other_teachers.get(network, self.teacher)

    @model_serializer(mode="wrap")
    def _as_before_of_one_teacher(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_nothing(handler(self), "other_teachers")


class ReadyTeacher(_Record):
    """A teacher that was trained or loaded.

    Args:
        folder: relative to the storage.
        metrics: `heldout_accuracy`, `heldout_loss` and so on, as in its card.
    """

    folder: str
    metrics: dict[str, float] = {}


class Trained(Protocol):
    """A student that was trained: a trial, one that was confirmed, one that can be exported."""

    @property
    def student(self) -> str:
        """The label of the network that learned."""

    @property
    def objective(self) -> str:
        """The methods with their settings; `none` without a teacher."""

    @property
    def point(self) -> dict[str, Option]:
        """What was chosen for it."""


def methods_of(objective: str) -> str:
    """The methods of an objective without their settings, like `kd + at`."""
    return re.sub(r"\([^)]*\)", "", objective)


def without_nothing(written: dict[str, Any], *keys: str) -> dict[str, Any]:
    """What is written of a record, without keys of later versions that have nothing in them."""
    return {name: value for name, value in written.items() if name not in keys or value}
