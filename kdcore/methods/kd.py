"""Distilling the Knowledge in a Neural Network. Hinton, Vinyals, Dean, 2015, arXiv:1503.02531."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import check_classes, softened_divergence, standardized


@full_precision
def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    standardize: bool = False,
) -> Tensor:
    """KL(teacher || student) of softened probabilities, times temperature squared (section 2).

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: > 0; its square keeps the scale of gradients.
        standardize: whether to standardise each image's logits to mean 0 and deviation 1 first.

    Returns:
        Scalar, nats, mean over the batch. Zero when both logits are equal up to a shift of each
        row; standardised, also up to its scale.
    """
    if standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    return softened_divergence(student_logits, teacher_logits, temperature).mean()


class KD(Method):
    """Softened class probabilities, the original method."""

    paper: ClassVar[str] = "arXiv:1503.02531"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
        "imagenet": Published(
            "mdistiller, configs/imagenet/r34_r18/kd.yaml",
            {"weight": 0.5, "temperature": 1.0, "cross_entropy": 0.5},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})

    class Params(method.Params):
        # Beside 0.1 to 1 of cross-entropy, this covers the published ratios, 0.9 to 90.
        weight: Annotated[float, Field(ge=0), Span(0.05, 50.0, log=True)] = 0.9
        cross_entropy: Annotated[float, Field(ge=0)] = 0.1
        temperature: Annotated[float, Field(gt=0), Span(1.0, 16.0, log=True)] = 4.0
        # Published (arXiv:2403.01427) with temperature 2 and weight 9.
        standardize: Annotated[bool, Choice((False, True))] = False

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return kd_loss(
            student.logits,
            teacher.logits,
            temperature=self.params.temperature,
            standardize=self.params.standardize,
        )
