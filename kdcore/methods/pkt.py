"""Learning Deep Representations with Probabilistic Knowledge Transfer.

Passalis and Tefas, ECCV 2018, arXiv:1803.10837.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.unit_vectors import unit_vectors

Reduction = Literal["pairs", "rows"]

# Keeps logarithms finite for opposite embeddings, also where rounding makes (cos + 1) / 2 negative.
_SMALLEST_AFFINITY = 1e-7


def affinities(embedding: Tensor) -> Tensor:
    """How near each other two images lie: (cos + 1) / 2, from 0 to 1.

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
    """KL(teacher || student) of the probabilities that images pick each other as neighbours.

    An image picks with probabilities proportional to its affinities. It may pick itself, as in the
    authors' code; the paper leaves that out.

    Args:
        student_embedding: [B, Ds].
        teacher_embedding: [B, Dt]; the widths may differ.
        reduction: `pairs`, the mean over all B^2 terms, as published, which falls like 1/B; or
            `rows`, the mean over the B images of their divergences: B times as much.

    Returns:
        Scalar, nats. Zero when all cosines are equal, and for a batch of one.
    """
    images = len(student_embedding)
    if images == 1:
        return student_embedding.sum() * 0.0
    student, teacher = affinities(student_embedding), affinities(teacher_embedding)
    student_sums, teacher_sums = student.sum(1, keepdim=True), teacher.sum(1, keepdim=True)
    # log(q / p), from quotients near 1: log q and log p are near -log B and lose its digits.
    log_ratio = (student / teacher).log() - (student_sums / teacher_sums).log()
    # -log(q / p) and q / p - 1 - log(q / p) have the same mean under p, but the latter is nowhere
    # negative, and nothing large cancels.
    divergences = teacher / teacher_sums * (torch.expm1(log_ratio) - log_ratio)
    mean = divergences.sum() / images
    return mean if reduction == "rows" else mean / images


class PKT(Method):
    """Which images lie near each other in a batch, as probabilities of being neighbours."""

    paper: ClassVar[str] = "arXiv:1803.10837"
    needs: frozenset[Tap] = frozenset({Tap.EMBEDDING})

    class Params(method.Params):
        # The lower end serves `rows`: 30,000 for the mean over pairs of 64 images is 30,000 / 64 =
        # 469 for the mean over rows, whatever the batch size.
        weight: Annotated[float, Field(ge=0), Span(100.0, 1e6, log=True)] = 30000.0
        reduction: Reduction = "pairs"

    params: Params

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return pkt_loss(student.embedding, teacher.embedding, reduction=self.params.reduction)
