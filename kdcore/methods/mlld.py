"""Multi-Level Logit Distillation. Jin, Wang and Lin, CVPR 2023,
doi:10.1109/CVPR52729.2023.02325.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import check_classes, softened_divergence

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
"""The paper's prediction augmentation: predictions are aligned at each of these."""


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Of the inner products of all pairs of rows, summed over the pairs and divided by the rows.

    Args:
        student: [N, M].
        teacher: [N, M].
    """
    return (student @ student.T - teacher @ teacher.T).square().sum() / len(student)


@full_precision
def mlld_loss(student_logits: Tensor, teacher_logits: Tensor, *, relation_weight: float) -> Tensor:
    """Predictions of images, and how alike they are: of two images, and of two classes.

    In the authors' code masks are to select unsure images and classes, but are applied to sums, of
    which they take half; here, as in the paper, there are none.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        relation_weight: of the levels of batch and class beside 1 of that of instances, >= 0.

    Returns:
        Scalar, the sum over the temperatures; of instances nats, mean over the batch, times
        temperature squared. Zero when both logits are equal up to a shift of an image's classes.
    """
    losses = []
    for temperature in TEMPERATURES:
        instances = softened_divergence(student_logits, teacher_logits, temperature).mean()
        student, teacher = (
            (logits / temperature).softmax(1) for logits in (student_logits, teacher_logits)
        )
        images, classes = squared_distance(student, teacher), squared_distance(student.T, teacher.T)
        losses.append(instances + relation_weight * (images + classes))
    return torch.stack(losses).sum()


class MLLD(Method):
    """Probabilities at five temperatures, and their products over images and over classes."""

    paper: ClassVar[str] = "doi:10.1109/CVPR52729.2023.02325"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        # There both views are added up, at half of the usual learning rate; here they are averaged.
        "cifar": Published("Multi-Level-Logit-Distillation, mdistiller/engine/cfg.py"),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS, Tap.STRONG_LOGITS})
    compares_images: bool = True

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 20.0, log=True)] = 0.9
        cross_entropy: Annotated[float, Field(ge=0)] = 0.1
        # The sums grow with the square of images over classes: with 10 classes, not 100, they are a
        # hundred times as large.
        relation_weight: Annotated[float, Field(ge=0), Span(0.001, 10.0, log=True)] = 1.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.strong_logits is not None
        assert teacher.strong_logits is not None
        weight = self.params.relation_weight
        weak = mlld_loss(student.logits, teacher.logits, relation_weight=weight)
        strong = mlld_loss(student.strong_logits, teacher.strong_logits, relation_weight=weight)
        return (weak + strong) / 2
