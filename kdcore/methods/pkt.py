"""Learning Deep Representations with Probabilistic Knowledge Transfer.

Passalis and Tefas, ECCV 2018, arXiv:1803.10837.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.unit_vectors import unit_vectors

Reduction = Literal["pairs", "rows"]

# Keeps logarithms finite for opposite embeddings, where rounding can make (cos + 1) / 2 negative.
_SMALLEST_AFFINITY = 1e-7


def affinities(embedding: Tensor) -> Tensor:
    """Cosine similarities of all pairs of images, mapped to 0 to 1 by (cos + 1) / 2.

    Args:
        embedding: [B, D].

    Returns:
        [B, B].
    """
    directions = unit_vectors(embedding)
    return ((directions @ directions.T + 1) / 2).clamp(min=_SMALLEST_AFFINITY)


@full_precision
def pkt_loss(
    student_embedding: Tensor, teacher_embedding: Tensor, *, reduction: Reduction
) -> Tensor:
    """KL(teacher || student) of the conditional probabilities between images.

    Probabilities are proportional to affinities. Each image includes itself, as in the authors'
    code but not in the paper.

    Args:
        student_embedding: [B, Ds].
        teacher_embedding: [B, Dt]; the widths may differ.
        reduction: `pairs` for the mean over all B^2 terms, as published, which is proportional to
            1/B; `rows` for the mean over the B images, which is B times as large.

    Returns:
        Scalar, nats. Zero when all cosines are equal, and for a batch of one.
    """
    images = len(student_embedding)
    if images == 1:
        return student_embedding.sum() * 0.0
    student, teacher = affinities(student_embedding), affinities(teacher_embedding)
    student_sums, teacher_sums = student.sum(1, keepdim=True), teacher.sum(1, keepdim=True)
    # log(q / p) from ratios near 1: log q and log p are near -log B, and cancellation loses digits.
    log_ratio = (student / teacher).log() - (student_sums / teacher_sums).log()
    # -log(q / p) and q / p - 1 - log(q / p) have the same mean under p, but the latter is never
    # negative, so that nothing cancels.
    divergences = teacher / teacher_sums * (torch.expm1(log_ratio) - log_ratio)
    mean = divergences.sum() / images
    return mean if reduction == "rows" else mean / images


class PKT(Method):
    """Similarities between the images of a batch, as conditional probabilities."""

    paper: ClassVar[str] = "arXiv:1803.10837"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
    }
    needs: frozenset[Tap] = frozenset({Tap.EMBEDDING})
    compares_images: bool = True

    class Params(method.Params):
        # The lower end is for `rows`: 30,000 for `pairs` of 64 images corresponds to 30,000 / 64 =
        # 469, which is independent of the batch size.
        weight: Annotated[float, Field(ge=0), Span(100.0, 1e6, log=True)] = 30000.0
        reduction: Reduction = "pairs"

    params: Params

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return pkt_loss(student.embedding, teacher.embedding, reduction=self.params.reduction)
