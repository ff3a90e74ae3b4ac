"""Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation.

Lv, Yang and Li, NeurIPS 2024, arXiv:2412.08139: WKD-F, of feature maps. Its other half is `wkd_l`.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from kdcore.contract import method
from kdcore.contract.layer_pairs import LAST, resolve_layers
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.connectors import connector
from kdcore.operations.match_spatial import match_spatial
from kdcore.operations.warmup import cosine_decay

# Of the authors' code, under the root of the variance: its gradient stays finite.
_EPSILON = 1e-5


def _moments(feature_map: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in each region, both [B, C, *grid]."""
    # Variance does not see a shift. Without the mean, the difference of squares loses few digits.
    shift = feature_map.detach().mean((2, 3), keepdim=True)
    centred = feature_map - shift
    mean = adaptive_avg_pool2d(centred, grid)
    variance = adaptive_avg_pool2d(centred.square(), grid) - mean.square()
    return mean + shift, (variance.clamp(min=0) + _EPSILON).sqrt()


@full_precision
def wkd_f_loss(
    projected_map: Tensor, teacher_map: Tensor, *, mean_ratio: float, grid: int
) -> Tensor:
    """Squared Wasserstein distance of Gaussians with diagonal covariance.

    The positions of a region are a sample of one Gaussian with a mean and a deviation for each
    channel; between two of these, the distance is that of both in the Euclidean plane. Deviations
    are those of the sample itself: the authors' code divides by one position less, of which a
    region of one has none.

    Args:
        projected_map: [B, C, H, W], the student's, with the teacher's channels.
        teacher_map: [B, C, H, W].
        mean_ratio: weight of the means beside that of the deviations, > 0.
        grid: regions in each direction, >= 1, and at most one for each position.

    Returns:
        Scalar, summed over channels, mean over batch and regions. Zero where both maps have equal
        means and deviations.
    """
    height, width = teacher_map.shape[2:]
    regions = min(grid, height), min(grid, width)
    means, deviations = zip(
        *(_moments(each, regions) for each in (projected_map, teacher_map)), strict=True
    )
    squares = mean_ratio * (means[0] - means[1]).square()
    squares = squares + (deviations[0] - deviations[1]).square()
    loss: Tensor = squares.sum(1).mean()
    return loss


class WKDF(Method):
    """Means and deviations of the teacher's maps, as Wasserstein's distance of two Gaussians."""

    paper: ClassVar[str] = "arXiv:2412.08139"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("WKD, configs/cifar100/wkd_f/res32x4_res8x4.yaml"),
        # There behind a projector of three convolutions.
        "imagenet": Published(
            "WKD, configs/imagenet/r34_r18/wkd_f.yaml",
            {"weight": 0.02, "mean_ratio": 2.0, "grid": 4, "decay_start": 0.0},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(1e-3, 1.0, log=True)] = 0.08
        mean_ratio: Annotated[float, Field(gt=0), Span(0.5, 8.0, log=True)] = 4.0
        grid: Annotated[int, Field(ge=1, le=64), Choice((1, 2, 4))] = 1
        # The loss falls to 0 after this share of the epochs: 150 of 240.
        decay_start: Annotated[float, Field(ge=0, le=1), Span(0.0, 1.0)] = 150 / 240
        layers: Annotated[str, LayerChoice()] = LAST

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)
        self.projectors = nn.ModuleList(
            connector(
                networks.student.maps[pair.student][0],
                networks.teacher.maps[pair.teacher][0],
                relu=True,
            )
            for pair in self.pairs
        )

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = []
        for pair, projector in zip(self.pairs, self.projectors, strict=True):
            student_map, teacher_map = match_spatial(
                student.maps[pair.student], teacher.maps[pair.teacher]
            )
            losses.append(
                wkd_f_loss(
                    projector(student_map),
                    teacher_map,
                    mean_ratio=self.params.mean_ratio,
                    grid=self.params.grid,
                )
            )
        factor = cosine_decay(batch.epoch, batch.epochs, start=self.params.decay_start)
        return factor * sum(losses[1:], start=losses[0])
