"""Relational Knowledge Distillation. Park, Kim, Lu and Cho, CVPR 2019, arXiv:1904.05068."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torch.utils.checkpoint import checkpoint

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps

# Squared distances below this share of the mean count as zero: they are float32's rounding errors.
_EQUAL_ROWS = 1e-6

# 8 MiB of float32: all angles of 128 images, or those at 32 corners of 256.
_ANGLES_AT_ONCE = 2**21


def _gram(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix [B, B] of the centred rows, and their squared distances [B, B].

    Centring avoids cancellation in |a|^2 + |b|^2 - 2ab far from the origin.
    """
    centred = embedding - embedding.mean(0, keepdim=True)
    gram = centred @ centred.T
    lengths = gram.diagonal()
    squares = lengths[:, None] + lengths[None, :] - 2 * gram
    threshold = _EQUAL_ROWS * squares.detach().mean()
    return gram, torch.where(squares > threshold, squares, 0.0)


def _inverse_root(squares: Tensor) -> Tensor:
    """1 / sqrt where positive, else 0; with a finite gradient everywhere."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).rsqrt(), 0.0)


def _distances(squares: Tensor) -> Tensor:
    """Distances [B, B] divided by the mean of the nonzero ones (equations 6 and 7)."""
    distances = squares * _inverse_root(squares)
    pairs = (squares > 0).sum().clamp(min=1)
    mean = distances.sum() / pairs
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(gram: Tensor, inverse_distances: Tensor, first: int, last: int) -> Tensor:
    """Cosines [j, i, k] of the angle at j between i and k (equation 8), for j from first to last.

    0 where points coincide. <x_i - x_j, x_k - x_j> = G_ik - G_ij - G_jk + G_jj avoids a tensor of
    size B x B x D.
    """
    corners = gram[first:last]
    products = gram[None, :, :] - corners[:, :, None] - corners[:, None, :]
    products = products + gram.diagonal()[first:last, None, None]
    scale = inverse_distances[first:last]
    return products * scale[:, :, None] * scale[:, None, :]


def _angle_difference(
    student_gram: Tensor,
    student_inverse_distances: Tensor,
    teacher_gram: Tensor,
    teacher_inverse_distances: Tensor,
    first: int,
    last: int,
) -> Tensor:
    """The sum of the Huber distances of the angles at corners first to last."""
    return smooth_l1_loss(
        _angles(student_gram, student_inverse_distances, first, last),
        _angles(teacher_gram, teacher_inverse_distances, first, last),
        reduction="sum",
    )


def _mean_angle_difference(
    student_gram: Tensor, student_squares: Tensor, teacher_gram: Tensor, teacher_squares: Tensor
) -> Tensor:
    """The mean of the Huber distances of all B^3 angles.

    For large batches, parts are computed one after another and recomputed in the backward pass, so
    that memory is proportional to B^2.
    """
    images = len(student_gram)
    geometry = (
        student_gram,
        _inverse_root(student_squares),
        teacher_gram,
        _inverse_root(teacher_squares),
    )
    corners = max(1, _ANGLES_AT_ONCE // images**2)
    if corners >= images:
        return _angle_difference(*geometry, 0, images) / images**3
    sums: list[Tensor] = [
        checkpoint(
            _angle_difference,
            *geometry,
            first,
            first + corners,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for first in range(0, images, corners)
    ]
    return torch.stack(sums).sum() / images**3


@full_precision
def rkd_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    distance_weight: float,
    angle_weight: float,
) -> Tensor:
    """Huber distance (delta 1) between the two networks' pairwise distances and triplet angles.

    Args:
        student_embedding: [B, Ds].
        teacher_embedding: [B, Dt]; the widths may differ.
        distance_weight: of the distances (equation 6), >= 0.
        angle_weight: of the angles (equation 9), >= 0.

    Returns:
        Scalar; each term is a mean over all pairs or triplets. Zero when the embeddings are equal
        up to shift, rotation and scale, and for a batch of one.
    """
    if len(student_embedding) == 1:
        return student_embedding.sum() * 0.0
    student_gram, student_squares = _gram(student_embedding)
    teacher_gram, teacher_squares = _gram(teacher_embedding)
    distance = smooth_l1_loss(_distances(student_squares), _distances(teacher_squares))
    angle = _mean_angle_difference(student_gram, student_squares, teacher_gram, teacher_squares)
    return distance_weight * distance + angle_weight * angle


class RKD(Method):
    """Relations in a batch: distances between pairs of embeddings, and angles of triplets."""

    paper: ClassVar[str] = "arXiv:1904.05068"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
    }
    needs: frozenset[Tap] = frozenset({Tap.EMBEDDING})
    compares_images: bool = True

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.01, 100.0, log=True)] = 1.0
        distance_weight: Annotated[float, Field(ge=0)] = 25.0
        # angle_weight = distance_weight * angle_ratio, 50 as published.
        angle_ratio: Annotated[float, Field(ge=0), Span(0.25, 8.0, log=True)] = 2.0

    params: Params

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return rkd_loss(
            student.embedding,
            teacher.embedding,
            distance_weight=self.params.distance_weight,
            angle_weight=self.params.distance_weight * self.params.angle_ratio,
        )
