"""The base class of distillation methods, and of their parameters."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import ClassVar, Literal, ParamSpec

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kdcore.contract.layer_pairs import LayerPair
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import STUDENTS_ALONE, Batch, Tap, Taps
from kdcore.errors import NetworkError


class Params(BaseModel):
    """Parameters of a method. Each field says what is legal, what is searched, what is published.

    Args:
        weight: of the method's term, which is added to cross-entropy.
        cross_entropy: the factor of cross-entropy beside it; 0 trains without labels. Of several
            methods in an objective, the largest counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, ge=0)
    cross_entropy: float = Field(1.0, ge=0)

    @classmethod
    def searched(cls) -> Mapping[str, Span | Choice | LayerChoice]:
        """The fields that a search varies, in declaration order."""
        marks: dict[str, Span | Choice | LayerChoice] = {}
        for name, info in cls.model_fields.items():
            for mark in info.metadata:
                if isinstance(mark, Span | Choice | LayerChoice):
                    marks[name] = mark
        return MappingProxyType(marks)

    def preparation_epochs(self, epochs: int) -> int:
        """Epochs of the preparatory stage: at least one if the share is above 0, and never all.

        Args:
            epochs: of the recipe, of which `preparation_share`, where a method has it, is a share.
        """
        share: float = getattr(self, "preparation_share", 0.0)
        return min(max(1, round(share * epochs)), epochs - 1) if share > 0 else 0


Mixing = Literal["no labels", "soft targets", "dominant class", "refused"]
"""What a method makes of images that are mixed of two: it reads no labels; both classes by their
shares; the class with the larger share; or it cannot be trained on them."""

_Params = Params  # inside Method, the name Params is the subclass's own


class Method(nn.Module):
    """A distillation method.

    A subclass declares `needs` and `Params`, one of the catalogue also `paper` and `published`,
    builds its trainable helpers in its constructor and defines `loss`. Helpers join the optimiser;
    other state must be a registered buffer, so that checkpoints include it.

    Attributes:
        paper: arXiv identifier or DOI; `-` where there is none.
        published: by benchmark, what is used there. Where `imagenet` is missing, as on CIFAR.
        needs: the kinds of output that it reads of both networks. If that depends on `params`, the
            constructor sets it, and the class declares all of them.
        batch_symmetric: whether the loss is the same for a batch in another order.
        zero_at_equality: whether the loss without helpers is 0 where both networks agree.
        mixing: what becomes of the labels of mixed images; `no labels` for methods that read none.
        undecayed: names of parameters that are excluded from weight decay.
        epochs_on_top: epochs that come before those of the recipe, set by the training where
            preparatory stages are no part of the budget.
        teacher_batch_statistics: whether the teacher's batch norms normalise by the batch; their
            running statistics never change.
        compares_images: whether the loss is more than a mean over the images, or what it remembers
            is of all of them: where several processes have parts of a batch, it is then given the
            whole one. If that depends on `params` or the epoch, the instance sets it.
        reuses_classifier: whether the student is trained, evaluated and exported with a projector
            to the teacher's classifier in the place of its own, see
            `kdcore.backbones.reused_classifier`; `networks.student` is then this whole.
        params: the parameters it was built with.
        pairs: the maps that it compares, set by the constructor of a method that reads maps.
    """

    paper: ClassVar[str] = "-"
    published: ClassVar[Mapping[Benchmark, Published]] = MappingProxyType(
        {"cifar": Published("its author")}
    )
    needs: frozenset[Tap]
    batch_symmetric: ClassVar[bool] = True
    zero_at_equality: ClassVar[bool] = True
    mixing: ClassVar[Mixing] = "no labels"
    undecayed: ClassVar[frozenset[str]] = frozenset()
    reuses_classifier: ClassVar[bool] = False
    Params: ClassVar[type[_Params]] = _Params
    params: _Params
    pairs: tuple[LayerPair, ...] = ()
    epochs_on_top: int = 0
    teacher_batch_statistics: bool = False
    compares_images: bool = False

    def __init__(self, params: _Params, networks: NetworkPair) -> None:
        super().__init__()
        self.check_teacher(networks)
        self.params = params

    @classmethod
    def check_teacher(cls, networks: NetworkPair) -> None:
        """Refuses a teacher that has logits alone, if the method reads more.

        Raises:
            NetworkError: it does.
        """
        of_logits = STUDENTS_ALONE | {Tap.LOGITS, Tap.STRONG_LOGITS}
        more = [kind for kind in Tap if kind in cls.needs - of_logits]
        if networks.teacher.logits_only and more:
            raise NetworkError(
                f"it reads {', '.join(more)}, but {networks.teacher.network} has logits alone; "
                f"use methods that read logits with it, or one of its networks"
            )

    @classmethod
    def reads_labels(cls, params: _Params) -> bool:
        """Whether it reads the labels of images, by itself or in the gradient of cross-entropy.

        Args:
            params: of this method.
        """
        return cls.mixing != "no labels"

    @classmethod
    def published_on(cls, benchmark: Benchmark) -> Published:
        """What is used on a benchmark."""
        return cls.published.get(benchmark) or cls.published["cifar"]

    @abstractmethod
    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """The term before weighting: a scalar, in at least float32."""

    def preparation(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """The loss of the preparatory stage, minimised alone and unweighted."""
        raise TypeError(f"{type(self).__name__} has no preparatory stage")

    def preparation_epochs(self, epochs: int) -> int:
        """The first epochs, in which `preparation` alone is minimised; 0 for most methods.

        Args:
            epochs: of the whole trial.
        """
        return self.params.preparation_epochs(epochs - self.epochs_on_top)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, in training mode; also after a resumption."""

    def after_step(self) -> None:
        """Called after each backward pass."""

    def forward(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """The unweighted term, or that of the preparatory stage. The teacher gets no gradient.

        Raises:
            ValueError: the two batches differ in size.
        """
        if len(student.logits) != len(teacher.logits):
            raise ValueError(
                f"{type(self).__name__}: the student's batch has {len(student.logits)} images and "
                f"the teacher's {len(teacher.logits)}, but both must see the same images"
            )
        teacher = teacher.detach()
        if not torch.is_autocast_enabled(student.logits.device.type):
            # Outside autocast, helpers in float32 cannot read maps in half precision.
            student, teacher = student.widened(), teacher.widened()
        preparing = batch.epoch <= self.preparation_epochs(batch.epochs)
        stage = self.preparation if preparing else self.loss
        return stage(student, teacher, batch)


P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Makes a loss function compute in float32 even under autocast (in float64 for such inputs).

    Sums of squares and softmax of large logits overflow in float16 and lose digits in bfloat16.
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
