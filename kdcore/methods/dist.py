"""Knowledge Distillation from A Stronger Teacher. Huang, You, Wang, Qian and Xu, NeurIPS 2022,
arXiv:2205.10536.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import check_classes

# Probabilities count as equal if the sum of their squared deviations is at most this share of the
# largest one squared, which is the size of rounding errors.
_EQUAL = 1e-8


def _directions(log_probabilities: Tensor, dim: int) -> Tensor:
    """Centred probabilities along a dimension, scaled to length 1; 0 where all are equal.

    They are first divided by the largest, which does not change the result, because squares of
    probabilities of 1e-30 underflow.
    """
    largest = log_probabilities.detach().amax(dim, keepdim=True)
    scaled = (log_probabilities - largest).exp()
    centred = scaled - scaled.mean(dim, keepdim=True)
    squares = centred.square().sum(dim, keepdim=True)
    differ = squares > _EQUAL
    return centred * torch.where(differ, torch.where(differ, squares, 1.0).rsqrt(), 0.0)


def _pearson_distance(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """1 - Pearson's correlation of probabilities along a dimension, mean over the other.

    Computed as half the squared distance of unit vectors, it is exactly 0 at equality. Where the
    correlation is undefined it is 1/2 if one side is constant, and 0 if both are.
    """
    difference = _directions(student, dim) - _directions(teacher, dim)
    return 0.5 * difference.square().sum(dim).mean()


@full_precision
def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    interclass_weight: float,
    intraclass_weight: float,
    temperature: float,
) -> Tensor:
    """Pearson distances of softened probabilities, over the classes and over the images.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        interclass_weight: of the distance over an image's classes, the paper's beta, >= 0.
        intraclass_weight: of the distance over the batch's images for a class, the paper's
            gamma, >= 0.
        temperature: > 0; its square is a factor, as in the authors' code.

    Returns:
        Scalar; each distance is a mean, from 0 to 2. Zero when both logits are equal up to a
        shift of each row. For a batch of one, the distance over images is 0.
    """
    student = log_softmax(student_logits / temperature, dim=1)
    teacher = log_softmax(teacher_logits / temperature, dim=1)
    interclass = _pearson_distance(student, teacher, dim=1)
    intraclass = _pearson_distance(student, teacher, dim=0)
    return temperature**2 * (interclass_weight * interclass + intraclass_weight * intraclass)


class DIST(Method):
    """Pearson correlation of probabilities, over the classes and over the images of a batch."""

    paper: ClassVar[str] = "arXiv:2205.10536"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("DIST_KD, dist_t4"),
        "imagenet": Published(
            "DIST_KD, configs/strategies/distill/resnet_dist.yaml", {"temperature": 1.0}
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})
    compares_images: bool = True

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 20.0, log=True)] = 2.0
        interclass_weight: Annotated[float, Field(ge=0)] = 1.0
        # The weight over images is interclass_weight * intraclass_ratio: 1 as published.
        intraclass_ratio: Annotated[float, Field(ge=0), Span(0.1, 10.0, log=True)] = 1.0
        # 4 on CIFAR-100, 1 on ImageNet.
        temperature: Annotated[float, Field(gt=0), Span(1.0, 8.0, log=True)] = 4.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return dist_loss(
            student.logits,
            teacher.logits,
            interclass_weight=self.params.interclass_weight,
            intraclass_weight=self.params.interclass_weight * self.params.intraclass_ratio,
            temperature=self.params.temperature,
        )
