"""Paraphrasing Complex Network: Network Compression via Factor Transfer.

Kim, Park and Kwak, NeurIPS 2018, arXiv:1802.04977.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from kdcore.contract import method
from kdcore.contract.layer_pairs import LAST, resolve_layers
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.attention import attention
from kdcore.operations.match_spatial import match_spatial
from kdcore.operations.unit_vectors import unit_vectors

Form = Literal["factor", "attention"]

# Negative slope of the leaky ReLUs.
_SLOPE = 0.1

# Lower bound for a teacher map's mean square, for dead maps among others.
_SMALLEST_MEAN_SQUARE = 1e-4


@full_precision
def reconstruction_loss(reconstructed_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Reconstruction error of the paraphraser, relative to the map's mean square (equation 1).

    So one learning rate works for maps of any scale. The authors' code takes the absolute error,
    for which all zeros is a good solution if the map is mostly zero; a short preparation then finds
    no better one.

    Args:
        reconstructed_map: [B, C, H, W].
        teacher_map: [B, C, H, W].

    Returns:
        Scalar. Zero when both are equal, 1 for a reconstruction of zeros.
    """
    strength = teacher_map.square().mean().clamp(min=_SMALLEST_MEAN_SQUARE)
    return mse_loss(reconstructed_map, teacher_map) / strength


@full_precision
def ft_loss(student_factor: Tensor, teacher_factor: Tensor, *, form: Form) -> Tensor:
    """Mean absolute difference of two factors of length 1 (equations 2 and 3).

    Args:
        student_factor: [B, C, Hs, Ws], from the translator.
        teacher_factor: [B, C, Ht, Wt], from the paraphraser; whichever is larger is average-pooled
            to the smaller before lengths are taken.
        form: `factor` to scale each image's whole factor to length 1, as in the paper and the
            authors' code; `attention` to scale its mean square over channels, as in other code.

    Returns:
        Scalar, mean over batch and elements. Zero when both factors are
        equal up to a positive factor for each image.
    """
    student, teacher = match_spatial(student_factor, teacher_factor)
    if form == "attention":
        return l1_loss(attention(student, power=2), attention(teacher, power=2))
    return l1_loss(unit_vectors(student.flatten(1)), unit_vectors(teacher.flatten(1)))


def _convolutions(*channels: int) -> nn.Sequential:
    """3x3 convolutions from each number of channels to the next, each with a leaky ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        convolution = nn.Conv2d(before, after, 3, padding=1)
        # Without this, the signal vanishes in six layers without a norm.
        nn.init.kaiming_normal_(convolution.weight, a=_SLOPE)
        layers += [convolution, nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An autoencoder of a teacher's maps, whose code is the factor.

    Args:
        channels: of the teacher's map.
        factor_channels: of the factor.
    """

    def __init__(self, channels: int, factor_channels: int) -> None:
        super().__init__()
        self.encoder = _convolutions(channels, channels, factor_channels, factor_channels)
        self.decoder = _convolutions(factor_channels, factor_channels, channels, channels)

    def forward(self, teacher_map: Tensor) -> Tensor:
        """The reconstructed map, [B, C, H, W]."""
        reconstructed: Tensor = self.decoder(self.encoder(teacher_map))
        return reconstructed


class FT(Method):
    """Factor transfer: an autoencoder encodes the teacher's map, a translator the student's."""

    paper: ClassVar[str] = "arXiv:1802.04977"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("Factor-Transfer-pytorch, train_student.py"),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS})

    class Params(method.Params):
        """The parameters of FT.

        Args:
            weight: of the term.
            preparation_share: share of the epochs, at least one, in which only the paraphraser
                trains, on the teacher's maps; it is then frozen.
            rate: channels of a factor, as a share of the teacher's; at least one.
            form: `factor`, as published with weight 500, or `attention`, in other code with weight
                200.
            layers: the maps.
        """

        weight: Annotated[float, Field(ge=0), Span(10.0, 5e3, log=True)] = 500.0
        preparation_share: Annotated[float, Field(gt=0, lt=1), Span(0.05, 0.5)] = 0.125
        rate: Annotated[float, Field(gt=0, le=1), Choice((0.25, 0.5, 0.75))] = 0.5
        form: Annotated[Form, Choice(("factor", "attention"))] = "factor"
        layers: Annotated[str, LayerChoice()] = LAST

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)
        self.paraphrasers = nn.ModuleList()
        self.translators = nn.ModuleList()
        for pair in self.pairs:
            student_channels = networks.student.maps[pair.student][0]
            teacher_channels = networks.teacher.maps[pair.teacher][0]
            factor_channels = max(1, round(params.rate * teacher_channels))
            self.paraphrasers.append(Paraphraser(teacher_channels, factor_channels))
            self.translators.append(
                _convolutions(student_channels, student_channels, factor_channels, factor_channels)
            )

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        preparing = epoch <= self.preparation_epochs(epochs)
        self.paraphrasers.train(preparing).requires_grad_(preparing)
        # The error is relative to the mean square of all maps.
        self.compares_images = preparing

    def preparation(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = []
        for pair, paraphraser in zip(self.pairs, self.paraphrasers, strict=True):
            teacher_map = teacher.maps[pair.teacher]
            losses.append(reconstruction_loss(paraphraser(teacher_map), teacher_map))
        return sum(losses[1:], start=losses[0])

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = []
        for pair, paraphraser, translator in zip(
            self.pairs, self.paraphrasers, self.translators, strict=True
        ):
            assert isinstance(paraphraser, Paraphraser)
            with torch.no_grad():
                teacher_factor = paraphraser.encoder(teacher.maps[pair.teacher])
            student_factor = translator(student.maps[pair.student])
            losses.append(ft_loss(student_factor, teacher_factor, form=self.params.form))
        return sum(losses[1:], start=losses[0])
