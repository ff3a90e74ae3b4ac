"""Similarity-Preserving Knowledge Distillation. Tung and Mori, ICCV 2019, arXiv:1907.09682."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.layer_pairs import LAST, resolve_layers
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.unit_vectors import unit_vectors

# The batch of the published weights.
_PUBLISHED_BATCH = 64


def similarities(activation: Tensor) -> Tensor:
    """Inner products of all pairs of images, each row scaled to length 1.

    Args:
        activation: [B, C, H, W].

    Returns:
        [B, B]; the row and the column of an image whose map is zero are zero.
    """
    rows = activation.flatten(1)
    return unit_vectors(rows @ rows.T)


@full_precision
def sp_loss(student_map: Tensor, teacher_map: Tensor, *, batch_scaled: bool) -> Tensor:
    """Mean squared difference of two similarity matrices (equations 1 to 4).

    The entries of a row of length 1 are of the order of B^-1/2, so that this mean falls like 1/B.

    Args:
        student_map: [B, Cs, Hs, Ws].
        teacher_map: [B, Ct, Ht, Wt]; the two maps share nothing but their batch.
        batch_scaled: multiply by B / 64, so that a weight means for every batch size what it means
            for the 64 images of the published one.

    Returns:
        Scalar, mean over the B^2 pairs. Zero when the maps are equal up to a factor, and for a
        batch of one.
    """
    images = len(student_map)
    if images == 1:
        return student_map.sum() * 0.0
    mean = (similarities(student_map) - similarities(teacher_map)).square().mean()
    return mean * (images / _PUBLISHED_BATCH) if batch_scaled else mean


class SP(Method):
    """Which images of a batch activate a network alike, summed over the chosen layers."""

    paper: ClassVar[str] = "arXiv:1907.09682"
    needs: frozenset[Tap] = frozenset({Tap.MAPS})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(100.0, 1e5, log=True)] = 3000.0
        # True makes one weight fit all batch sizes; at 64 images it changes nothing.
        batch_scaled: bool = False
        layers: Annotated[str, LayerChoice()] = LAST

    params: Params

    def __init__(self, params: Params, setting: NetworkPair) -> None:
        super().__init__(params, setting)
        self.pairs = resolve_layers(params.layers, setting.student, setting.teacher)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = [
            sp_loss(
                student.maps[pair.student],
                teacher.maps[pair.teacher],
                batch_scaled=self.params.batch_scaled,
            )
            for pair in self.pairs
        ]
        return sum(losses[1:], start=losses[0])
