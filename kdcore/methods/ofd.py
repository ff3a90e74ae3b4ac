"""A Comprehensive Overhaul of Feature Distillation.

Heo, Kim, Yun, Park, Kwak and Choi, ICCV 2019, arXiv:1904.01866.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kdcore.contract import method
from kdcore.contract.layer_pairs import ALL, resolve_layers
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.connectors import connector
from kdcore.operations.match_spatial import match_spatial

Normalization = Literal["sum", "mean"]

# As in the authors' code, channels that are negative more rarely have a margin of 3 deviations.
_RARELY_NEGATIVE = 1e-3


@torch.no_grad()
def expected_margin(gamma: Tensor, beta: Tensor) -> Tensor:
    """The expected value of a normal variable, given that it is negative.

    Assuming that a batch norm's output is normal with mean beta and deviation |gamma|,
    E[x | x < 0] = beta - |gamma| pdf(beta / |gamma|) / cdf(-beta / |gamma|).

    Args:
        gamma: [C]; where it is 0 the channel is constant, and its margin min(beta, 0).
        beta: [C].

    Returns:
        [C], <= 0.
    """
    deviation, mean = gamma.double().abs(), beta.double()
    constant = deviation == 0
    ratio = mean / torch.where(constant, 1.0, deviation)
    log_share = torch.special.log_ndtr(-ratio)
    log_density = -0.5 * ratio.square() - 0.5 * math.log(2 * math.pi)
    margin = mean - deviation * (log_density - log_share).exp()
    margin = torch.where(log_share > math.log(_RARELY_NEGATIVE), margin, -3 * deviation)
    return torch.where(constant, mean.clamp(max=0), margin).to(beta.dtype)


@full_precision
def ofd_loss(
    student_preactivation: Tensor,
    teacher_preactivation: Tensor,
    margin: Tensor,
    *,
    normalization: Normalization,
) -> Tensor:
    """Partial squared distance to the teacher's values, clipped at the margin (equations 1 to 6).

    With t = max(teacher, margin), the loss of a student value s is (s - t)^2, or 0 if s <= t <= 0,
    where both activations are zero anyway.

    Args:
        student_preactivation: [B, C, H, W], after the connector.
        teacher_preactivation: [B, C, H, W].
        margin: [C], <= 0.
        normalization: `sum` over an image's units, as published, which grows with the map; `mean`
            over the units. Either is a mean over the batch.

    Returns:
        Scalar. Zero when the student equals the teacher where it is positive, and is at most t
        elsewhere.
    """
    student = student_preactivation
    target = torch.maximum(teacher_preactivation, margin[:, None, None])
    # The partial distance is the distance to the nearest value with zero loss.
    nearest = torch.where(target > 0, target, torch.minimum(student.detach(), target))
    if normalization == "mean":
        return mse_loss(student, nearest)
    return mse_loss(student, nearest, reduction="sum") / len(student)


class MeasuredMargin(nn.Module):
    """The mean of each channel's negative values over all steps so far; 0 before the first.

    Args:
        channels: C.
    """

    negative_sum: Tensor
    negative_count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # float32 cannot count beyond 16,777,216, which is 1,024 images of a 128x128 map.
        self.register_buffer("negative_sum", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("negative_count", torch.zeros(channels, dtype=torch.int64))
        self._seen: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def forward(self, preactivation: Tensor) -> Tensor:
        """The margin [C], with the values of this batch, [B, C, H, W], included."""
        total = self.negative_sum + preactivation.clamp(max=0).sum((0, 2, 3), dtype=torch.float32)
        count = self.negative_count + (preactivation < 0).sum((0, 2, 3))
        self._seen = total, count
        return (total / count.clamp(min=1)).float()

    def remember(self) -> None:
        """Stores the statistics that include the last batch, which `forward` alone does not."""
        if self._seen is not None:
            self.negative_sum.copy_(self._seen[0])
            self.negative_count.copy_(self._seen[1])
            self._seen = None


class ExpectedMargin(nn.Module):
    """The margin of a batch norm; see `expected_margin`.

    Args:
        gamma: [C].
        beta: [C].
    """

    margin: Tensor

    def __init__(self, gamma: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.register_buffer("margin", expected_margin(gamma, beta))

    def forward(self, preactivation: Tensor) -> Tensor:
        return self.margin


class OFD(Method):
    """Pre-activations, except for negative values that the activation removes."""

    paper: ClassVar[str] = "arXiv:1904.01866"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published(
            "mdistiller, mdistiller/engine/cfg.py and mdistiller/distillers/OFD.py",
            {"teacher_bn": "batch"},
        ),
        "imagenet": Published(
            "overhaul-distillation, ImageNet/train_with_distillation.py",
            {"weight": 0.0001, "teacher_bn": "batch"},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.PREACTIVATIONS})

    class Params(method.Params):
        """The parameters of OFD.

        Args:
            weight: of the term.
            margin: `norm` for the expected margin of the teacher's batch norms, as published (taps
                without a norm are measured); `measured` for the mean of negative values so far.
            teacher_bn: statistics of the teacher's batch norms: `eval` for running ones, `batch`
                for the batch's, as published, which affects all terms of the objective.
            normalization: `sum` over the units of a map, as published, or `mean`, whose scale does
                not depend on the image size; weights of 0.1 to 100 are then suitable.
            layers: their losses have weights 1, 1/2, 1/4, ... from the last to the first.
        """

        weight: Annotated[float, Field(ge=0), Span(1e-5, 0.1, log=True)] = 1e-3
        margin: Annotated[Literal["norm", "measured"], Choice(("norm", "measured"))] = "norm"
        teacher_bn: Annotated[Literal["eval", "batch"], Choice(("eval", "batch"))] = "eval"
        normalization: Normalization = "sum"
        layers: Annotated[str, LayerChoice()] = ALL

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.teacher_batch_statistics = params.teacher_bn == "batch"
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)
        self.connectors = nn.ModuleList()
        self.margins = nn.ModuleList()
        for pair in self.pairs:
            teacher_channels = networks.teacher.maps[pair.teacher][0]
            self.connectors.append(
                connector(networks.student.maps[pair.student][0], teacher_channels, relu=False)
            )
            has_norm = params.margin == "norm" and pair.teacher in networks.teacher_norms
            self.margins.append(
                ExpectedMargin(*networks.teacher_norms[pair.teacher])
                if has_norm
                else MeasuredMargin(teacher_channels)
            )

        self.compares_images = any(isinstance(each, MeasuredMargin) for each in self.margins)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = []
        for pair, to_teacher, margin in zip(self.pairs, self.connectors, self.margins, strict=True):
            student_map, teacher_map = match_spatial(
                student.preactivations[pair.student], teacher.preactivations[pair.teacher]
            )
            losses.append(
                ofd_loss(
                    to_teacher(student_map),
                    teacher_map,
                    margin(teacher_map),
                    normalization=self.params.normalization,
                )
            )
        weighted = [0.5**depth * loss for depth, loss in enumerate(reversed(losses))]
        return sum(weighted[1:], start=weighted[0])

    def after_step(self) -> None:
        for margin in self.margins:
            if isinstance(margin, MeasuredMargin):
                margin.remember()
