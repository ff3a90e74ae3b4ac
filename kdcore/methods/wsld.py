"""Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective. Zhou
et al., ICLR 2021, arXiv:2102.00650.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, Mixing, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Mixed, Tap, Taps
from kdcore.operations.labels import label_losses
from kdcore.operations.logits import check_classes, softened_divergence

# Lower bound for the teacher's cross-entropy, nats, by which the student's is divided.
_SMALLEST_LOSS = 1e-7


@torch.no_grad()
def _soft_label_weight(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, mixed: Mixed | None
) -> Tensor:
    """1 - exp(-(student's cross-entropy) / (teacher's)), [B]."""
    student = label_losses(student_logits, labels, mixed)
    teacher = label_losses(teacher_logits, labels, mixed)
    return -torch.expm1(-student / teacher.clamp(min=_SMALLEST_LOSS))


@full_precision
def wsld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    mixed: Mixed | None = None,
) -> Tensor:
    """KD's divergence with a weight per image, smaller where the student beats the teacher.

    No gradient flows through the weights. The authors' code has a cross-entropy in place of the
    divergence, with the same gradient, but only the divergence is zero at equality.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        labels: [B], int64 classes, for the weights.
        temperature: > 0, of the divergence, not of the weights; its square keeps the scale of
            gradients.
        mixed: the second classes, if images are mixed; the weights' cross-entropies are then those
            of both classes, by their shares.

    Returns:
        Scalar, nats, mean over the batch. Zero when both logits are equal up to a shift of each
        row, and for images that the student classifies with certainty.
    """
    weights = _soft_label_weight(student_logits, teacher_logits, labels, mixed)
    return (weights * softened_divergence(student_logits, teacher_logits, temperature)).mean()


class WSLD(Method):
    """Softened class probabilities, with less weight on images that the student knows."""

    paper: ClassVar[str] = "arXiv:2102.00650"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("cls_KD, configs/distillers/cifar100/res34_distill_res18_cifar.py"),
        "imagenet": Published(
            "cls_KD, configs/distillers/imagenet/res34_distill_res18_img.py",
            {"weight": 2.5, "temperature": 2.0},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})
    mixing: ClassVar[Mixing] = "soft targets"

    class Params(method.Params):
        # 2.25 with temperature 4 on CIFAR-100, 2.5 with 2 on ImageNet.
        weight: Annotated[float, Field(ge=0), Span(0.1, 20.0, log=True)] = 2.25
        temperature: Annotated[float, Field(gt=0), Span(1.0, 16.0, log=True)] = 4.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return wsld_loss(
            student.logits,
            teacher.logits,
            batch.labels,
            temperature=self.params.temperature,
            mixed=batch.mixed,
        )
