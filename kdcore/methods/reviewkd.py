"""Distilling Knowledge via Knowledge Review. Chen, Liu, Zhao and Jia, CVPR 2021, arXiv:2104.09044.

Maps are taken before the activation, as in the authors' ImageNet code. (In their CIFAR code,
student maps are taken after it in ResNets, and before it in Wide ResNets.)
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from kdcore.contract import method
from kdcore.contract.layer_pairs import equal_depth_pairs
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.connectors import ConnectorNorm
from kdcore.operations.warmup import linear_warmup

# Sides of the pyramid's levels, below the map itself.
_PYRAMID = (4, 2, 1)


@full_precision
def reviewkd_loss(fused_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Hierarchical context loss: mean squared differences of a pyramid of average-pooled maps.

    The map itself has weight 1, and the levels 4x4, 2x2 and 1x1 each half the weight of the one
    before; the sum is divided by the sum of weights. Levels as large as the map are skipped. A side
    of the map that is smaller than a level's is not pooled.

    Args:
        fused_map: [B, C, H, W], the student's, after fusion.
        teacher_map: [B, C, H, W].

    Returns:
        Scalar, mean over batch, channels and positions. Zero when both maps are equal.
    """
    # Pooling is linear, so the difference can be pooled instead of both maps.
    difference = fused_map - teacher_map
    height, width = difference.shape[2:]
    total, weight, weights = difference.square().mean(), 1.0, 1.0
    for side in _PYRAMID:
        size = (min(side, height), min(side, width))
        if size != (height, width):
            weight /= 2
            weights += weight
            total = total + weight * adaptive_avg_pool2d(difference, size).square().mean()
    return total / weights


def resized(feature_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a map, by average pooling where it is larger and nearest neighbour where smaller.

    Args:
        feature_map: [B, C, H, W].
        size: height and width.

    Returns:
        [B, C, height, width].
    """
    smaller = (min(feature_map.shape[2], size[0]), min(feature_map.shape[3], size[1]))
    if tuple(feature_map.shape[2:]) != smaller:
        feature_map = adaptive_avg_pool2d(feature_map, smaller)
    return interpolate(feature_map, size, mode="nearest") if smaller != size else feature_map


class Fusion(nn.Module):
    """Attention-based fusion of a stage's map with the fused map of the deeper stages.

    Args:
        student_channels: Cs, of the stage.
        teacher_channels: Ct, of the map that this stage learns from.
        width: channels of fused maps.
        deepest: whether this is the deepest stage, with nothing to fuse.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, width: int, *, deepest: bool
    ) -> None:
        super().__init__()
        reduce = nn.Conv2d(student_channels, width, 1, bias=False)
        expand = nn.Conv2d(width, teacher_channels, 3, padding=1, bias=False)
        for convolution in (reduce, expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.reduce = nn.Sequential(reduce, ConnectorNorm(width))
        self.expand = nn.Sequential(expand, ConnectorNorm(teacher_channels))
        self.attention = None if deepest else nn.Conv2d(2 * width, 2, 1)

    def forward(
        self, student_map: Tensor, deeper: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Fuses two maps at the teacher's size.

        Args:
            student_map: [B, Cs, Hs, Ws].
            deeper: [B, width, H, W], from the next deeper stage; None for the deepest.
            size: (Ht, Wt), of the teacher's map.

        Returns:
            The map to compare, [B, Ct, Ht, Wt], and the fused map for the next shallower stage,
            [B, width, Ht, Wt].
        """
        fused = self.reduce(student_map)
        if self.attention is not None and deeper is not None:
            deeper = resized(deeper, (fused.shape[2], fused.shape[3]))
            attention = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = fused * attention[:, :1] + deeper * attention[:, 1:]
        fused = resized(fused, size)
        return self.expand(fused), fused


def _as_map(embedding: Tensor) -> Tensor:
    """[B, D] as a map of one position, [B, D, 1, 1]."""
    return embedding[:, :, None, None]


class ReviewKD(Method):
    """Knowledge review: each stage, fused with all deeper ones, predicts the teacher's map."""

    paper: ClassVar[str] = "arXiv:2104.09044"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("ReviewKD, CIFAR-100/script/reviewKD.sh, most pairs"),
        "imagenet": Published(
            "mdistiller, configs/imagenet/r34_r18/reviewkd.yaml",
            {"weight": 1.0, "warmup_share": 0.01},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.PREACTIVATIONS, Tap.EMBEDDING})

    class Params(method.Params):
        # The authors' CIFAR scripts: 5 for most pairs, 0.6 to 8 for all. mdistiller's for ImageNet:
        # 1 (ResNet-34 to ResNet-18) and 8 (ResNet-50 to MobileNet).
        weight: Annotated[float, Field(ge=0), Span(0.3, 30.0, log=True)] = 5.0
        # Warm-up of the loss: 20 of 240 epochs for CIFAR, 1 of 100 for ImageNet.
        warmup_share: Annotated[float, Field(ge=0, le=1), Span(0.0, 0.25)] = 20 / 240
        # Upper bound for the channels of fused maps, which are those of the student's embedding.
        max_width: Annotated[int, Field(ge=1)] = 512

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        student, teacher = networks.student, networks.teacher
        self.pairs = equal_depth_pairs(student, teacher)
        channels = [
            (student.maps[pair.student][0], teacher.maps[pair.teacher][0]) for pair in self.pairs
        ]
        channels.append((student.embedding_width, teacher.embedding_width))
        width = min(params.max_width, student.embedding_width)
        # From the embedding, which is the deepest, to the first stage.
        self.fusions = nn.ModuleList(
            Fusion(*both, width, deepest=number == 0)
            for number, both in enumerate(reversed(channels))
        )

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        student_maps = [student.preactivations[pair.student] for pair in self.pairs]
        teacher_maps = [teacher.preactivations[pair.teacher] for pair in self.pairs]
        student_maps.append(_as_map(student.embedding))
        teacher_maps.append(_as_map(teacher.embedding))
        deeper, losses = None, []
        for fusion, student_map, teacher_map in zip(
            self.fusions, reversed(student_maps), reversed(teacher_maps), strict=True
        ):
            fused, deeper = fusion(student_map, deeper, tuple(teacher_map.shape[2:]))
            losses.append(reviewkd_loss(fused, teacher_map))
        total = sum(losses[1:], start=losses[0])
        return total * linear_warmup(batch.epoch, batch.epochs, share=self.params.warmup_share)
