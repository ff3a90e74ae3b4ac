"""The contract of a distillation method: what it consumes, what is searched, how it is computed."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import ClassVar, ParamSpec

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kdcore.span import Choice, LayerChoice, Span
from kdcore.taps import Batch, Setting, Tap, Taps


class Params(BaseModel):
    """The settings of a method. A field tells what is legal, what is searched, what is published.

    Args:
        weight: the factor of the method's term beside cross-entropy, which has factor 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, ge=0)

    @classmethod
    def searched(cls) -> Mapping[str, Span | Choice | LayerChoice]:
        """The fields that a search varies, in the order of their declaration."""
        marks: dict[str, Span | Choice | LayerChoice] = {}
        for name, info in cls.model_fields.items():
            for mark in info.metadata:
                if isinstance(mark, Span | Choice | LayerChoice):
                    marks[name] = mark
        return MappingProxyType(marks)


_Params = Params  # inside Method, the name Params is the subclass's own


class Method(nn.Module):
    """A distillation method: one file of the catalogue.

    A subclass declares `paper`, `needs` and `Params`, builds its trainable helpers in its
    constructor and gives `loss`. Helpers are its parameters and join the optimiser; other state is
    a registered buffer.

    Attributes:
        paper: where the method comes from.
        needs: the kinds of output that it reads, of student and teacher alike.
        params: the settings that this object was built with.
    """

    paper: ClassVar[str]
    needs: ClassVar[frozenset[Tap]]
    Params: ClassVar[type[_Params]] = _Params
    params: _Params

    def __init__(self, params: _Params, setting: Setting) -> None:
        super().__init__()
        self.params = params

    @abstractmethod
    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """The term before weighting: a scalar, in at least float32."""

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """The term before weighting; no gradient reaches the teacher.

        Raises:
            ValueError: the two networks saw batches of different sizes.
        """
        if len(student.logits) != len(teacher.logits):
            raise ValueError(
                f"{type(self).__name__}: the student's batch has {len(student.logits)} images and "
                f"the teacher's {len(teacher.logits)}, but both must see the same images"
            )
        teacher = teacher.detach()
        if not torch.is_autocast_enabled(student.logits.device.type):
            # A helper's weights are float32; only autocast brings half-precision maps to them.
            student, teacher = student.widened(), teacher.widened()
        return self.loss(student, teacher, batch)


P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Makes a loss function compute in float32 (float64 for float64 inputs), also under autocast.

    Sums of squares and softmax of large logits leave the range of float16 and lose digits in
    bfloat16.
    """

    def widen(value: object) -> object:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if isinstance(value, Tensor) and half else value

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given = (*args, *kwargs.values())
        device = next(value for value in given if isinstance(value, Tensor)).device.type
        with torch.autocast(device, enabled=False):
            widened = {name: widen(value) for name, value in kwargs.items()}
            return loss(*map(widen, args), **widened)  # type: ignore[arg-type]

    return wrapped
