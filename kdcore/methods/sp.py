"""Similarity-Preserving Knowledge Distillation. Tung and Mori, ICCV 2019, arXiv:1907.09682."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.layer_pairs import LAST, resolve_layers
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.unit_vectors import unit_vectors

# Batch size of the published weights.
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

    Entries of a row of length 1 are of the order of B^-1/2, so this mean is proportional to 1/B.

    Args:
        student_map: [B, Cs, Hs, Ws].
        teacher_map: [B, Ct, Ht, Wt]; only the batch size must be the same.
        batch_scaled: multiply by B / 64, so that the weight does not depend on the batch size.

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
    """Similarities of the maps of a batch's images, summed over the chosen layers."""

    paper: ClassVar[str] = "arXiv:1907.09682"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS})
    compares_images: bool = True

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(100.0, 1e5, log=True)] = 3000.0
        # True makes the weight independent of the batch size; no effect at 64 images.
        batch_scaled: bool = False
        layers: Annotated[str, LayerChoice()] = LAST

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)

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
