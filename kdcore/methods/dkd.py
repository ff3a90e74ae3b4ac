"""Decoupled Knowledge Distillation. Zhao, Cui, Song, Qiu and Liang, CVPR 2022, arXiv:2203.08679."""

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
    softened_divergence,
    standardized,
    target_and_others,
)
from kdcore.operations.warmup import linear_warmup


@full_precision
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    target_weight: float,
    nontarget_weight: float,
    temperature: float,
    standardize: bool = False,
    mixed: Mixed | None = None,
) -> Tensor:
    """KL(teacher || student) in two parts with free weights: target vs rest, and among the rest.

    KD is the first part (TCKD) plus the second (NCKD) times the teacher's probability of all
    non-targets, which is close to 0 for a confident teacher.

    Args:
        student_logits: [B, K], K >= 3; with two classes the second part is 0.
        teacher_logits: [B, K].
        labels: [B], int64 classes, the targets.
        target_weight: of TCKD, the paper's alpha, >= 0.
        nontarget_weight: of NCKD, the paper's beta, >= 0.
        temperature: > 0; its square keeps the scale of gradients.
        standardize: whether to standardise each image's logits to mean 0 and deviation 1 first.
        mixed: the second classes, if images are mixed. Each of the two is the target once, and the
            two values are averaged by the shares: the mean over a target that is drawn by them.

    Returns:
        Scalar, nats, mean over the batch. Zero when both logits are equal up to a shift of each
        row; standardised, also up to its scale.
    """
    if standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    student_logits, teacher_logits = student_logits / temperature, teacher_logits / temperature
    weights = target_weight, nontarget_weight

    def of_targets(targets: Tensor) -> Tensor:
        return _of_targets(student_logits, teacher_logits, targets, *weights)

    return over_targets(of_targets, labels, mixed).mean() * temperature**2


def _of_targets(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    target_weight: float,
    nontarget_weight: float,
) -> Tensor:
    """The weighted sum of both parts, [B]."""
    student_target, student_others = target_and_others(student_logits, labels)
    teacher_target, teacher_others = target_and_others(teacher_logits, labels)
    # Log odds of the target. The log of the sum of the non-targets' softmax, as in the published
    # code, is -inf for a confident student.
    target = binary_divergence(
        student_target - student_others.logsumexp(1), teacher_target - teacher_others.logsumexp(1)
    )
    nontarget = softened_divergence(student_others, teacher_others, 1.0)
    return target_weight * target + nontarget_weight * nontarget


class DKD(Method):
    """Softened class probabilities, decoupled into the target's and those of the others."""

    paper: ClassVar[str] = "arXiv:2203.08679"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("mdistiller, mdistiller/engine/cfg.py"),
        "imagenet": Published(
            "mdistiller, configs/imagenet/r34_r18/dkd.yaml",
            {"nontarget_weight": 0.5, "temperature": 1.0, "warmup_share": 0.01},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})
    mixing: ClassVar[Mixing] = "soft targets"

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 20.0, log=True)] = 1.0
        target_weight: Annotated[float, Field(ge=0)] = 1.0
        # 8, 6 or 2 on CIFAR-100, depending on the networks, and 0.5 on ImageNet.
        nontarget_weight: Annotated[float, Field(ge=0), Span(0.5, 16.0, log=True)] = 8.0
        temperature: Annotated[float, Field(gt=0), Span(1.0, 8.0, log=True)] = 4.0
        # Warm-up of the loss: 20 of 240 epochs.
        warmup_share: Annotated[float, Field(ge=0, le=1), Span(0.0, 0.25)] = 20 / 240
        # Published (arXiv:2403.01427) with weight 9.
        standardize: Annotated[bool, Choice((False, True))] = False

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks, at_least=3)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        factor = linear_warmup(batch.epoch, batch.epochs, share=self.params.warmup_share)
        return factor * dkd_loss(
            student.logits,
            teacher.logits,
            batch.labels,
            target_weight=self.params.target_weight,
            nontarget_weight=self.params.nontarget_weight,
            temperature=self.params.temperature,
            standardize=self.params.standardize,
            mixed=batch.mixed,
        )
