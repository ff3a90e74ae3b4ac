"""Correlation Congruence for Knowledge Distillation. Peng et al., ICCV 2019, arXiv:1904.01802.

The paper projects both embeddings by trained linear layers before it compares their kernel
matrices. With a trained layer for the teacher, the loss has a trivial solution: both layers map all
images to one direction, and all kernel values are 1. A common width is not necessary, because
kernel matrices are B x B for every width. Here the teacher's embedding is a fixed target, and only
the student's may be projected.

The loss that RepDistiller calls CC, on the differences of neighbouring images in a batch, depends
on the order of the batch and is not the paper's; it is not available here.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.unit_vectors import unit_vectors

Kernel = Literal["bilinear", "taylor", "rbf"]


def correlations(embedding: Tensor, *, kernel: Kernel, gamma: float, order: int) -> Tensor:
    """Kernel values of all pairs of embeddings, each scaled to length 1.

    On unit vectors exp(-gamma |x - y|^2) = exp(-2 gamma) exp(2 gamma <x, y>), and the Taylor series
    of the second factor is a polynomial of the Gram matrix.

    Args:
        embedding: [B, D].
        kernel: `bilinear`, <x, y>; `taylor`, the Gaussian kernel as its Taylor series; `rbf`, the
            Gaussian kernel itself.
        gamma: > 0, of the Gaussian kernel.
        order: >= 1, the highest power of the series.

    Returns:
        [B, B].
    """
    directions = unit_vectors(embedding)
    cosines = directions @ directions.T
    if kernel == "bilinear":
        return cosines
    if kernel == "rbf":
        return (2 * gamma * (cosines - 1)).exp()
    # Horner: 1 + z (1 + z/2 (1 + z/3 (...)))
    series = cosines * (2 * gamma / order) + 1
    for power in range(order - 1, 0, -1):
        series = series * cosines * (2 * gamma / power) + 1
    return math.exp(-2 * gamma) * series


@full_precision
def cc_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    kernel: Kernel,
    gamma: float,
    order: int,
) -> Tensor:
    """Mean squared difference of two matrices of kernel values.

    Args:
        student_embedding: [B, Ds].
        teacher_embedding: [B, Dt]; the widths may differ.
        kernel: `bilinear`, `taylor` or `rbf`, of embeddings scaled to length 1.
        gamma: > 0, of the Gaussian kernel; `bilinear` does not use it.
        order: >= 1, the highest power of the Taylor series; only `taylor` uses it.

    Returns:
        Scalar, mean over the B^2 pairs. Zero when all cosines are equal, and for a batch of one.
    """
    if len(student_embedding) == 1:
        return student_embedding.sum() * 0.0
    student = correlations(student_embedding, kernel=kernel, gamma=gamma, order=order)
    teacher = correlations(teacher_embedding, kernel=kernel, gamma=gamma, order=order)
    return (student - teacher).square().mean()


class CC(Method):
    """Correlation congruence: kernel values between the embeddings of the images in a batch."""

    paper: ClassVar[str] = "arXiv:1904.01802"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("the paper's kernel; its weight is not published"),
    }
    needs: frozenset[Tap] = frozenset({Tap.EMBEDDING})
    compares_images: bool = True

    class Params(method.Params):
        # The usual 0.02 is for RepDistiller's loss on unnormalised embeddings. Kernel values of
        # unit vectors differ by about 0.05, squared 0.0025; times 100 that is 0.25, on the scale of
        # cross-entropy.
        weight: Annotated[float, Field(ge=0), Span(1.0, 1e4, log=True)] = 100.0
        kernel: Annotated[Kernel, Choice(("taylor", "rbf", "bilinear"))] = "taylor"
        gamma: Annotated[float, Field(gt=0, le=20), Span(0.1, 2.0, log=True)] = 0.4
        order: Annotated[int, Field(ge=1, le=20), Choice((1, 2, 3))] = 2
        # Whether a trained linear layer projects the student's embedding to the teacher's width.
        projected: Annotated[bool, Choice((False, True))] = False

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.projector: nn.Linear | None = None
        if params.projected:
            self.projector = nn.Linear(
                networks.student.embedding_width, networks.teacher.embedding_width
            )

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        student_embedding = student.embedding
        if self.projector is not None:
            student_embedding = self.projector(student_embedding)
        return cc_loss(
            student_embedding,
            teacher.embedding,
            kernel=self.params.kernel,
            gamma=self.params.gamma,
            order=self.params.order,
        )
