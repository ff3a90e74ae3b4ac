"""Decoupled Knowledge Distillation. Zhao, Cui, Song, Qiu and Liang, CVPR 2022, arXiv:2203.08679."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import (
    check_classes,
    softened_divergence,
    standardized,
    target_and_others,
)
from kdcore.operations.warmup import linear_warmup


def _target_divergence(student_logit: Tensor, teacher_logit: Tensor) -> Tensor:
    """KL of two coins, [B], that fall on the target with probability sigmoid(logit)."""
    heads, tails = logsigmoid(teacher_logit), logsigmoid(-teacher_logit)
    return heads.exp() * (heads - logsigmoid(student_logit)) + tails.exp() * (
        tails - logsigmoid(-student_logit)
    )


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
) -> Tensor:
    """The two parts of KL(teacher || student), target or not and which non-target, reweighted.

    KD is the first part (TCKD) plus the second (NCKD) times the teacher's probability of all
    non-targets: a sure teacher silences the second. Here its weight is free.

    Args:
        student_logits: [B, K], K >= 3; with two classes the second part is 0.
        teacher_logits: [B, K].
        labels: [B], int64 classes, the targets.
        target_weight: of TCKD, the paper's alpha, >= 0.
        nontarget_weight: of NCKD, the paper's beta, >= 0.
        temperature: > 0; its square keeps gradients on the scale of cross-entropy.
        standardize: whether each image's logits first get mean 0 and deviation 1 over the
            classes.

    Returns:
        Scalar, nats, mean over the batch. Zero when both logits are equal up to a shift of each
        row; standardised, also up to its scale.
    """
    if standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    student_target, student_others = target_and_others(student_logits / temperature, labels)
    teacher_target, teacher_others = target_and_others(teacher_logits / temperature, labels)
    # log(p / (1 - p)) of the target. The logarithm of a softmax summed over the non-targets, as
    # in the published code, is minus infinity for a student that is sure.
    target = _target_divergence(
        student_target - student_others.logsumexp(1), teacher_target - teacher_others.logsumexp(1)
    )
    nontarget = softened_divergence(student_others, teacher_others, 1.0)
    return (target_weight * target + nontarget_weight * nontarget).mean() * temperature**2


class DKD(Method):
    """Softened class probabilities in two parts: the target's, and those among the others."""

    paper: ClassVar[str] = "arXiv:2203.08679"
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 20.0, log=True)] = 1.0
        target_weight: Annotated[float, Field(ge=0)] = 1.0
        # 8, 6 or 2 by the pair of networks on CIFAR-100, 0.5 on ImageNet.
        nontarget_weight: Annotated[float, Field(ge=0), Span(0.5, 16.0, log=True)] = 8.0
        temperature: Annotated[float, Field(gt=0), Span(1.0, 8.0, log=True)] = 4.0
        # The loss rises over the first 20 of 240 epochs.
        warmup_share: Annotated[float, Field(ge=0, le=1), Span(0.0, 0.25)] = 20 / 240
        # Published (arXiv:2403.01427) with weight 9.
        standardize: Annotated[bool, Choice((False, True))] = False

    params: Params

    def __init__(self, params: Params, setting: NetworkPair) -> None:
        super().__init__(params, setting)
        check_classes(setting, at_least=3)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        ramp = linear_warmup(batch.epoch, batch.epochs, share=self.params.warmup_share)
        return ramp * dkd_loss(
            student.logits,
            teacher.logits,
            batch.labels,
            target_weight=self.params.target_weight,
            nontarget_weight=self.params.nontarget_weight,
            temperature=self.params.temperature,
            standardize=self.params.standardize,
        )
