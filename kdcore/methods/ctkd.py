"""Curriculum Temperature for Knowledge Distillation. Li et al., AAAI 2023, arXiv:2211.16231."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import check_classes, softened_divergence, standardized
from kdcore.operations.warmup import cosine_warmup


def reversed_gradient(value: Tensor, factor: float) -> Tensor:
    """Gradient reversal: the same value, bit for bit, with its gradient multiplied by -factor."""
    return value.detach() - factor * (value - value.detach())


@full_precision
def ctkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor,
    *,
    standardize: bool = False,
) -> Tensor:
    """KD with a gradient for the temperature, including the factor of its square.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: scalar, > 0.
        standardize: whether to standardise each image's logits to mean 0 and deviation 1 first.

    Returns:
        Scalar, nats, mean over the batch. Zero when both logits are equal up to a shift of each
        row; standardised, also up to its scale.
    """
    if standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    return softened_divergence(student_logits, teacher_logits, temperature).mean()


class CTKD(Method):
    """Softened class probabilities, with a temperature that is trained against the student."""

    paper: ClassVar[str] = "arXiv:2211.16231"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("CTKD, scripts/run_cifar_distill.sh"),
        "imagenet": Published(
            "CTKD, scripts/run_imagenet_distill.sh", {"weight": 1.0, "cross_entropy": 1.0}
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})
    # Weight decay would pull the temperature to the middle of its range.
    undecayed: ClassVar[frozenset[str]] = frozenset({"temperature_logit"})

    class Params(method.Params):
        # Beside 0.1 to 1 of cross-entropy, this covers the published ratios, 0.9 to 90.
        weight: Annotated[float, Field(ge=0), Span(0.05, 50.0, log=True)] = 0.9
        cross_entropy: Annotated[float, Field(ge=0)] = 0.1
        lowest_temperature: Annotated[float, Field(gt=0)] = 1.0
        temperature_range: Annotated[float, Field(gt=0)] = 20.0
        # Warm-up of the reversed gradient: 10 of 240 epochs, 5 of 120 on ImageNet.
        ramp_share: Annotated[float, Field(ge=0, le=1), Span(0.01, 0.5, log=True)] = 10 / 240
        # Published (arXiv:2403.01427) with weight 9.
        standardize: Annotated[bool, Choice((False, True))] = False

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)
        # Starts at 1 + 20 * sigmoid(1) = 15.6, as published.
        self.temperature_logit = nn.Parameter(torch.tensor(1.0))

    @property
    def temperature(self) -> Tensor:
        """Scalar, between `lowest_temperature` and that plus `temperature_range`."""
        share = self.temperature_logit.sigmoid()
        return self.params.lowest_temperature + self.params.temperature_range * share

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        factor = cosine_warmup(batch.epoch, batch.epochs, share=self.params.ramp_share)
        return ctkd_loss(
            student.logits,
            teacher.logits,
            reversed_gradient(self.temperature, factor),
            standardize=self.params.standardize,
        )
