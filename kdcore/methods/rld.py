"""Knowledge Distillation with Refined Logits. Sun, Chen, Lyu, Chen, Chen and Wang, 2024,
arXiv:2408.07703.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, Mixing, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Mixed, Tap, Taps
from kdcore.operations.labels import over_targets
from kdcore.operations.logits import (
    binary_divergence,
    check_classes,
    log_odds,
    softened_divergence,
    standardized,
)
from kdcore.operations.warmup import linear_warmup


@full_precision
def rld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    confidence_weight: float,
    correlation_weight: float,
    confidence_temperature: float,
    temperature: float,
    standardize: bool = False,
    mixed: Mixed | None = None,
) -> Tensor:
    """How sure the teacher is, for the true class; and KL among the classes that it ranks below it.

    The first part, sample confidence, compares the student's probability of the true class with
    the teacher's of the class that it predicts, right or wrong. The second, masked correlation,
    leaves out the true class and all that the teacher prefers to it, so that no part of it
    teaches a mistake.

    Args:
        student_logits: [B, K], K >= 3; with two classes the second part is 0.
        teacher_logits: [B, K].
        labels: [B], int64 classes, the targets.
        confidence_weight: of the first part, the paper's alpha, >= 0.
        correlation_weight: of the second part, the paper's beta, >= 0.
        confidence_temperature: > 0, of the first part, which is multiplied by its square.
        temperature: > 0, of the second part, which is multiplied by its square.
        standardize: whether to standardise each image's logits to mean 0 and deviation 1 first.
        mixed: the second classes, if images are mixed. Each of the two is the target once, and the
            two values are averaged by the shares: the mean over a target that is drawn by them.

    Returns:
        Scalar, nats, mean over the batch. Zero when both logits are equal and the teacher is right
        about every image. The second part is 0 where the teacher ranks no class below the true one.
    """
    if standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    teacher_odds = log_odds(teacher_logits / confidence_temperature, teacher_logits.argmax(1))

    def of_targets(targets: Tensor) -> Tensor:
        student_odds = log_odds(student_logits / confidence_temperature, targets)
        confidence = binary_divergence(student_odds, teacher_odds) * confidence_temperature**2
        below = teacher_logits < teacher_logits.gather(1, targets[:, None])
        some = below.any(1)
        # Rows without such a class stay whole, so that they are finite, and count 0.
        left_out = ~below & some[:, None]
        correlation = some * softened_divergence(
            student_logits.masked_fill(left_out, -float("inf")),
            teacher_logits.masked_fill(left_out, -float("inf")),
            temperature,
        )
        return confidence_weight * confidence + correlation_weight * correlation

    return over_targets(of_targets, labels, mixed).mean()


class RLD(Method):
    """The teacher's confidence for the true class, and its order of the classes below that."""

    paper: ClassVar[str] = "arXiv:2408.07703"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RLD, mdistiller/engine/cfg.py"),
        "imagenet": Published(
            "RLD, configs/imagenet/r34_r18/rld.yaml",
            {"correlation_weight": 0.5, "temperature": 1.0, "warmup_share": 0.01},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})
    zero_at_equality: ClassVar[bool] = False
    mixing: ClassVar[Mixing] = "soft targets"

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 20.0, log=True)] = 1.0
        confidence_weight: Annotated[float, Field(ge=0)] = 1.0
        # 8 on CIFAR-100, 0.5 on ImageNet.
        correlation_weight: Annotated[float, Field(ge=0), Span(0.5, 16.0, log=True)] = 8.0
        confidence_temperature: Annotated[float, Field(gt=0)] = 1.0
        temperature: Annotated[float, Field(gt=0), Span(1.0, 8.0, log=True)] = 4.0
        # Warm-up of the loss: 20 of 240 epochs, 1 of 100 on ImageNet.
        warmup_share: Annotated[float, Field(ge=0, le=1), Span(0.0, 0.25)] = 20 / 240
        standardize: Annotated[bool, Choice((False, True))] = False

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks, at_least=3)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        factor = linear_warmup(batch.epoch, batch.epochs, share=self.params.warmup_share)
        return factor * rld_loss(
            student.logits,
            teacher.logits,
            batch.labels,
            confidence_weight=self.params.confidence_weight,
            correlation_weight=self.params.correlation_weight,
            confidence_temperature=self.params.confidence_temperature,
            temperature=self.params.temperature,
            standardize=self.params.standardize,
            mixed=batch.mixed,
        )
