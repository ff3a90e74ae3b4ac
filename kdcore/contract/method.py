"""The contract of a distillation method: what it consumes, what is searched, how it is computed."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import ClassVar, ParamSpec

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kdcore.contract.layer_pairs import LayerPair
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps


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
    a registered buffer, so that checkpoints hold it.

    Attributes:
        paper: where the method comes from.
        needs: the kinds of output that it reads, of student and teacher alike. A method whose
            settings decide sets its own in the constructor; the class then declares them all.
        batch_symmetric: whether a batch in another order gives the same loss.
        zero_at_equality: whether the loss without helpers is 0 where both networks say the same.
        undecayed: names of its parameters that weight decay must spare.
        preparation_share: the share of a trial's epochs, from the first, in which only
            `preparation` trains. Below 1; 0 for most methods.
        teacher_batch_statistics: whether the teacher's batch norms use the batch's statistics;
            their running statistics never change.
        params: the settings that this object was built with.
        pairs: the maps that it compares; a method that reads maps sets them in its constructor.
    """

    paper: ClassVar[str]
    needs: frozenset[Tap]
    batch_symmetric: ClassVar[bool] = True
    zero_at_equality: ClassVar[bool] = True
    undecayed: ClassVar[frozenset[str]] = frozenset()
    Params: ClassVar[type[_Params]] = _Params
    params: _Params
    pairs: tuple[LayerPair, ...] = ()
    preparation_share: float = 0.0
    teacher_batch_statistics: bool = False

    def __init__(self, params: _Params, setting: NetworkPair) -> None:
        super().__init__()
        self.params = params

    @abstractmethod
    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """The term before weighting: a scalar, in at least float32."""

    def preparation(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """What is minimised, alone and unweighted, while the method prepares."""
        raise TypeError(f"{type(self).__name__} has no preparatory stage")

    def preparation_epochs(self, epochs: int) -> int:
        """How many of a trial's epochs prepare: at least one where any do, and never all."""
        if self.preparation_share == 0:
            return 0
        return min(max(1, round(self.preparation_share * epochs)), epochs - 1)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Is called before each epoch, in training mode, also after a resumption."""

    def after_step(self) -> None:
        """Is called once the last loss has given its gradients, for a step or a part of one."""

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """The term before weighting, or the preparation's; no gradient reaches the teacher.

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
        preparing = batch.epoch <= self.preparation_epochs(batch.epochs)
        stage = self.preparation if preparing else self.loss
        return stage(student, teacher, batch)


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
