"""Paying More Attention to Attention. Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from kdcore import method
from kdcore.layers import ALL, resolve_layers
from kdcore.method import Method, full_precision
from kdcore.span import Choice, LayerChoice, Span
from kdcore.spatial import match_spatial
from kdcore.taps import Batch, Setting, Tap, Taps


def attention(activation: Tensor, *, power: int) -> Tensor:
    """Spatial attention: the mean over channels of |F|^power, scaled to Euclidean length 1.

    Args:
        activation: [B, C, H, W].
        power: >= 1.

    Returns:
        [B, H * W]; a zero map has zero attention.
    """
    strength = activation.abs()
    # Powers of weak or strong maps leave float32's range; their scale cancels in the end.
    peak = strength.detach().amax((1, 2, 3), keepdim=True)
    strength = strength / torch.where(peak > 0, peak, 1.0)
    return normalize(strength.pow(power).mean(1).flatten(1), dim=1)


@full_precision
def at_loss(student_map: Tensor, teacher_map: Tensor, *, power: int) -> Tensor:
    """Mean squared difference of two attention maps (equation 2, squared as its authors' code).

    Args:
        student_map: [B, Cs, Hs, Ws].
        teacher_map: [B, Ct, Ht, Wt]; whichever map is larger is average-pooled to the smaller.
        power: >= 1, of the activation before channels are averaged.

    Returns:
        Scalar, mean over batch and positions. Zero when both attention maps are equal.
    """
    student, teacher = match_spatial(student_map, teacher_map)
    difference = attention(student, power=power) - attention(teacher, power=power)
    return difference.square().mean()


class AT(Method):
    """Where the teacher looks: spatial attention maps, summed over the chosen layers."""

    paper: ClassVar[str] = "arXiv:1612.03928"
    needs: ClassVar[frozenset[Tap]] = frozenset({Tap.MAPS})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(1.0, 1e4, log=True)] = 1000.0
        power: Annotated[int, Field(ge=1, le=8), Choice((1, 2, 4))] = 2
        layers: Annotated[str, LayerChoice()] = ALL

    params: Params

    def __init__(self, params: Params, setting: Setting) -> None:
        super().__init__(params, setting)
        self.pairs = resolve_layers(params.layers, setting.student, setting.teacher)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = [
            at_loss(student.maps[pair.student], teacher.maps[pair.teacher], power=self.params.power)
            for pair in self.pairs
        ]
        return sum(losses[1:], start=losses[0])
