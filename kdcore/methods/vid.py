"""Variational Information Distillation for Knowledge Transfer.

Ahn et al., CVPR 2019, arXiv:1904.05835.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from kdcore.contract import method
from kdcore.contract.layer_pairs import ALL, resolve_layers
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.match_spatial import match_spatial

_SMALLEST_VARIANCE = 1e-5


def raw_variance(variance: float) -> float:
    """The inverse of the variance in `vid_loss`, which must be > 1e-5."""
    # The inverse of softplus: log(e^v - 1) = v + log(1 - e^-v), which does not overflow.
    above = variance - _SMALLEST_VARIANCE
    return above + math.log(-math.expm1(-above))


@full_precision
def vid_loss(predicted_map: Tensor, teacher_map: Tensor, raw_variances: Tensor) -> Tensor:
    """Negative log-likelihood of a map under a Gaussian, up to a constant (equations 3 to 6).

    Each element has a predicted mean and its channel's variance: the mean over all elements of
    ((t - mean)^2 / variance + log variance) / 2.

    Args:
        predicted_map: [B, C, H, W], the means.
        teacher_map: [B, C, H, W].
        raw_variances: [C], any real numbers; the variances are softplus(raw) + 1e-5.

    Returns:
        Scalar, nats; may be negative. For equal maps it is the mean of log(variance) / 2.
    """
    # log(1 + e^raw) would overflow from 89 on.
    variances = softplus(raw_variances) + _SMALLEST_VARIANCE
    squares = (predicted_map - teacher_map).square().mean((0, 2, 3))
    return 0.5 * (squares / variances + variances.log()).mean()


class VID(Method):
    """A Gaussian model of the teacher's maps given the student's, with a variance per channel."""

    paper: ClassVar[str] = "arXiv:1904.05835"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS})
    # Weight decay would pull the variances towards softplus(0) = 0.69.
    undecayed: ClassVar[frozenset[str]] = frozenset({"raw_variances"})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.01, 100.0, log=True)] = 1.0
        initial_variance: Annotated[float, Field(ge=1e-3), Span(0.5, 10.0, log=True)] = 5.0
        layers: Annotated[str, LayerChoice()] = ALL

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)
        self.channels = [networks.teacher.maps[pair.teacher][0] for pair in self.pairs]
        self.regressors = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(networks.student.maps[pair.student][0], channels, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 1, bias=False),
            )
            for pair, channels in zip(self.pairs, self.channels, strict=True)
        )
        # Of all layers, concatenated.
        self.raw_variances = nn.Parameter(
            torch.full((sum(self.channels),), raw_variance(params.initial_variance))
        )

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        raw_variances = torch.split(self.raw_variances, self.channels)
        losses = []
        for pair, regressor, raw in zip(self.pairs, self.regressors, raw_variances, strict=True):
            student_map, teacher_map = match_spatial(
                student.maps[pair.student], teacher.maps[pair.teacher]
            )
            losses.append(vid_loss(regressor(student_map), teacher_map, raw))
        return sum(losses[1:], start=losses[0])
