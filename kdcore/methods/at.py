"""Paying More Attention to Attention. Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from kdcore.contract import method
from kdcore.contract.layer_pairs import ALL, resolve_layers
from kdcore.contract.method import Method, Mixing, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.attention import attention
from kdcore.operations.match_spatial import match_spatial

Kind = Literal["activation", "gradient", "flip symmetry"]
Reduction = Literal["mean", "paper"]

_NEEDS = {
    "activation": frozenset({Tap.MAPS}),
    "gradient": frozenset({Tap.INPUT_GRADIENT}),
    "flip symmetry": frozenset({Tap.INPUT_GRADIENT, Tap.FLIPPED_INPUT_GRADIENT}),
}


def _distance(first: Tensor, second: Tensor, reduction: Reduction) -> Tensor:
    """Mean squared difference, as in the authors' code, or half its norm, as in the paper.

    Where the norm is 0, so is the gradient.
    """
    if reduction == "mean":
        return mse_loss(first, second)
    squares = mse_loss(first, second, reduction="none").flatten(1).sum(1)
    differ = squares > 0
    lengths = torch.where(differ, torch.where(differ, squares, 1.0).sqrt(), 0.0)
    return 0.5 * lengths.mean()


@full_precision
def at_loss(
    student_map: Tensor, teacher_map: Tensor, *, power: int, reduction: Reduction = "mean"
) -> Tensor:
    """Distance between two attention maps (equation 2).

    Args:
        student_map: [B, Cs, Hs, Ws].
        teacher_map: [B, Ct, Ht, Wt]; whichever map is larger is average-pooled to the smaller.
        power: >= 1, of the magnitudes that are summed over channels.
        reduction: `mean`, of squared differences over batch and positions, as in the authors'
            code; `paper`, half the Euclidean distance, mean over the batch.

    Returns:
        Scalar. Zero when both attention maps are equal.
    """
    student, teacher = match_spatial(student_map, teacher_map)
    return _distance(attention(student, power=power), attention(teacher, power=power), reduction)


@full_precision
def gradient_at_loss(
    student_gradient: Tensor, teacher_gradient: Tensor, *, reduction: Reduction
) -> Tensor:
    """Distance between the input gradients of two networks' cross-entropy.

    Args:
        student_gradient: [B, C, H, W], of each image's own cross-entropy.
        teacher_gradient: [B, C, H, W].
        reduction: as in `at_loss`; `mean` is over batch, channels and pixels.

    Returns:
        Scalar. Zero when both gradients are equal.
    """
    return _distance(student_gradient, teacher_gradient, reduction)


@full_precision
def flip_symmetry_loss(
    gradient: Tensor, flipped_gradient: Tensor, *, reduction: Reduction
) -> Tensor:
    """Distance between the input gradient of an image and that of its mirror image, flipped back.

    Args:
        gradient: [B, C, H, W], of each image's cross-entropy.
        flipped_gradient: [B, C, H, W], of the mirrored images'.
        reduction: as in `gradient_at_loss`.

    Returns:
        Scalar. Zero when the gradients are mirror images too.
    """
    return _distance(gradient, flipped_gradient.flip(3), reduction)


class AT(Method):
    """Attention transfer: attention maps of the chosen layers, or input gradients."""

    paper: ClassVar[str] = "arXiv:1612.03928"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
        "imagenet": Published("mdistiller, configs/imagenet/r34_r18/at.yaml"),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS, Tap.INPUT_GRADIENT, Tap.FLIPPED_INPUT_GRADIENT})
    mixing: ClassVar[Mixing] = "soft targets"  # of the cross-entropy whose gradient it reads

    class Params(method.Params):
        """The parameters of AT.

        Args:
            weight: of the term. With reduction `mean` the term is divided by the number of
                positions; with `paper` it is not, and weights of 0.1 to 100 are suitable.
            kind: `activation` for attention maps; `gradient` for input gradients, which cost the
                student a second backward pass; `flip symmetry` of the student's input gradients,
                which costs two and does not use the teacher.
            power: of `activation`.
            reduction: `mean` of squares, or half a Euclidean distance as in the `paper`.
            layers: of `activation`.
        """

        weight: Annotated[float, Field(ge=0), Span(0.1, 1e4, log=True)] = 1000.0
        kind: Annotated[Kind, Choice(("activation", "gradient", "flip symmetry"))] = "activation"
        power: Annotated[int, Field(ge=1, le=8), Choice((1, 2, 4))] = 2
        reduction: Annotated[Reduction, Choice(("mean", "paper"))] = "mean"
        layers: Annotated[str, LayerChoice()] = ALL

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.needs = _NEEDS[params.kind]
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)

    @classmethod
    def reads_labels(cls, params: method.Params) -> bool:
        return isinstance(params, cls.Params) and Tap.INPUT_GRADIENT in _NEEDS[params.kind]

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        reduction = self.params.reduction
        if self.params.kind == "activation":
            return self._activation_loss(student, teacher)
        assert student.input_gradient is not None
        if self.params.kind == "gradient":
            assert teacher.input_gradient is not None
            return gradient_at_loss(
                student.input_gradient, teacher.input_gradient, reduction=reduction
            )
        assert student.flipped_input_gradient is not None
        return flip_symmetry_loss(
            student.input_gradient, student.flipped_input_gradient, reduction=reduction
        )

    def _activation_loss(self, student: Taps, teacher: Taps) -> Tensor:
        losses = [
            at_loss(
                student.maps[pair.student],
                teacher.maps[pair.teacher],
                power=self.params.power,
                reduction=self.params.reduction,
            )
            for pair in self.pairs
        ]
        return sum(losses[1:], start=losses[0])
