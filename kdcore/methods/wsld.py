"""Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective. Zhou
et al., ICLR 2021, arXiv:2102.00650.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import check_classes, softened_divergence

# The least cross-entropy, nats, that the student's is divided by.
_SURE = 1e-7


@torch.no_grad()
def _soft_label_weight(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """1 - exp(-(student's cross-entropy) / (teacher's)), [B]: near 0 where the student knows."""
    student = cross_entropy(student_logits, labels, reduction="none")
    teacher = cross_entropy(teacher_logits, labels, reduction="none")
    return -torch.expm1(-student / teacher.clamp(min=_SURE))


@full_precision
def wsld_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float
) -> Tensor:
    """KD's divergence, weighted image by image: less where the student beats the teacher.

    The weights carry no gradient. The authors' code has the cross-entropy of soft labels for the
    divergence; both have the same gradient, but only the divergence is zero at equality.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        labels: [B], int64 classes, for the weights.
        temperature: > 0, of the divergence and not of the weights; its square keeps gradients
            on the scale of cross-entropy.

    Returns:
        Scalar, nats, mean over the batch. Zero when both logits are equal up to a shift of each
        row, and for images that the student is sure of and right about.
    """
    weights = _soft_label_weight(student_logits, teacher_logits, labels)
    return (weights * softened_divergence(student_logits, teacher_logits, temperature)).mean()


class WSLD(Method):
    """Softened class probabilities; images that the student already knows weigh less."""

    paper: ClassVar[str] = "arXiv:2102.00650"
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})

    class Params(method.Params):
        # 2.25 and temperature 4 on CIFAR-100, 2.5 and 2 on ImageNet.
        weight: Annotated[float, Field(ge=0), Span(0.1, 20.0, log=True)] = 2.25
        temperature: Annotated[float, Field(gt=0), Span(1.0, 16.0, log=True)] = 4.0

    params: Params

    def __init__(self, params: Params, setting: NetworkPair) -> None:
        super().__init__(params, setting)
        check_classes(setting)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return wsld_loss(
            student.logits, teacher.logits, batch.labels, temperature=self.params.temperature
        )
