"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer.

Huang and Wang, 2017, arXiv:1707.01219.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.layer_pairs import ALL, resolve_layers
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.match_spatial import match_spatial
from kdcore.operations.unit_vectors import unit_vectors

Kernel = Literal["linear", "polynomial", "gaussian"]

# Channels with a squared length up to this are dead.
_DEAD = 1e-24
# Lower bound for the Gaussian kernel's width, for images whose channels are all equal.
_SMALLEST_WIDTH = 1e-3


def _inverse_lengths(gram: Tensor) -> Tensor:
    """1 / length of each channel [B, C]; 0, without a gradient, for dead channels."""
    squares = gram.diagonal(dim1=1, dim2=2)
    alive = squares > _DEAD
    return torch.where(alive, torch.where(alive, squares, 1.0).rsqrt(), 0.0)


def _cosines(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines [B, Cs, Cs], [B, Ct, Ct] and [B, Cs, Ct] between channels; 0 for dead channels.

    The Gram matrices are normalised, because they are smaller than the maps.
    """
    student_gram, teacher_gram = student @ student.detach().mT, teacher @ teacher.mT
    # By symmetry, the gradient is twice that through the left factor, which saves a matrix product.
    student_gram = 2 * student_gram - student_gram.detach()
    student_scale, teacher_scale = _inverse_lengths(student_gram), _inverse_lengths(teacher_gram)
    return (
        student_gram * student_scale[:, :, None] * student_scale[:, None, :],
        teacher_gram * teacher_scale[:, :, None] * teacher_scale[:, None, :],
        (student @ teacher.mT) * student_scale[:, :, None] * teacher_scale[:, None, :],
    )


def _discrepancy(student: Tensor, teacher: Tensor, between: Tensor) -> Tensor:
    """Squared maximum mean discrepancy [B] from three matrices of kernel values."""
    return student.mean((1, 2)) + teacher.mean((1, 2)) - 2 * between.mean((1, 2))


def _linear(student: Tensor, teacher: Tensor) -> Tensor:
    """k(x, y) = <x, y>: the means of k are inner products of mean channels."""
    difference = unit_vectors(student).mean(1) - unit_vectors(teacher).mean(1)
    return difference.square().sum(1)


def _polynomial(student: Tensor, teacher: Tensor) -> Tensor:
    """k(x, y) = <x, y>^2, from whichever Gram matrices are cheaper.

    With channels as the rows of A, the sum of <x, y>^2 over all pairs of channels is |A_s A_t^T|^2,
    which is also <A_s^T A_s, A_t^T A_t>, with matrices between positions. In that form, the three
    means are one square.
    """
    _, cs, positions = student.shape
    ct = teacher.shape[1]
    if cs**2 + ct**2 + cs * ct <= positions * (cs + ct):
        student_cosines, teacher_cosines, between = _cosines(student, teacher)
        return _discrepancy(student_cosines.square(), teacher_cosines.square(), between.square())
    student, teacher = unit_vectors(student), unit_vectors(teacher)
    difference = student.mT @ student / cs - teacher.mT @ teacher / ct
    return difference.square().sum((1, 2))


def _gaussian(student: Tensor, teacher: Tensor) -> Tensor:
    """k(x, y) = exp(-|x - y|^2 / 2 width), with each image's mean |x - y|^2 as its width.

    The mean is over all pairs of channels of both networks. No gradient flows through the width.
    """
    student_cosines, teacher_cosines, between = _cosines(student, teacher)
    # Squared lengths: 1, or 0 for dead channels, and so without a gradient too; [B, C].
    student_squares = student_cosines.detach().diagonal(dim1=1, dim2=2)
    teacher_squares = teacher_cosines.detach().diagonal(dim1=1, dim2=2)
    with torch.no_grad():
        # The mean of |x - y|^2 over all pairs of a set is 2 (mean |x|^2 - |mean x|^2).
        channels = student.shape[1] + teacher.shape[1]
        squares = (student_squares.sum(1) + teacher_squares.sum(1)) / channels
        total = student_cosines.sum((1, 2)) + teacher_cosines.sum((1, 2)) + 2 * between.sum((1, 2))
        width = 2 * (squares - total / channels**2)
        width = width.clamp(min=_SMALLEST_WIDTH)[:, None, None]

    def kernel(cosines: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        distances = rows[:, :, None] + columns[:, None, :] - 2 * cosines
        return (distances / (-2 * width)).exp()

    return _discrepancy(
        kernel(student_cosines, student_squares, student_squares),
        kernel(teacher_cosines, teacher_squares, teacher_squares),
        kernel(between, student_squares, teacher_squares),
    )


_DISCREPANCIES = {"linear": _linear, "polynomial": _polynomial, "gaussian": _gaussian}


@full_precision
def nst_loss(student_map: Tensor, teacher_map: Tensor, *, kernel: Kernel) -> Tensor:
    """Squared maximum mean discrepancy between the channels of two maps (equations 4 to 8).

    An image's channels are a sample of vectors over its H * W positions, each scaled to length 1,
    or zero for dead channels.

    Args:
        student_map: [B, Cs, Hs, Ws].
        teacher_map: [B, Ct, Ht, Wt]; whichever map is larger is average-pooled to the smaller.
        kernel: `linear`, <x, y>; `polynomial`, <x, y>^2; `gaussian`, exp(-|x - y|^2 / 2 width),
            with each image's mean |x - y|^2 as its width.

    Returns:
        Scalar, mean over the batch. Zero when both maps have the same channels, in any order and up
        to a positive factor each.
    """
    student, teacher = match_spatial(student_map, teacher_map)
    return _DISCREPANCIES[kernel](student.flatten(2), teacher.flatten(2)).mean()


class NST(Method):
    """Neuron selectivity: the distribution of the channels' spatial patterns."""

    paper: ClassVar[str] = "arXiv:1707.01219"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(1.0, 1e3, log=True)] = 50.0
        kernel: Annotated[Kernel, Choice(("polynomial", "linear", "gaussian"))] = "polynomial"
        layers: Annotated[str, LayerChoice()] = ALL

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = [
            nst_loss(
                student.maps[pair.student], teacher.maps[pair.teacher], kernel=self.params.kernel
            )
            for pair in self.pairs
        ]
        return sum(losses[1:], start=losses[0])
