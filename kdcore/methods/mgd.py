"""Masked Generative Distillation. Yang et al., ECCV 2022, arXiv:2205.01529."""

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.contract import method
from kdcore.contract.layer_pairs import LAST, resolve_layers
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.match_spatial import match_spatial

Mask = Literal["channels", "positions"]


@full_precision
def mgd_loss(generated_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared difference of two maps, summed over channels and positions.

    Args:
        generated_map: [B, C, H, W], generated from the student's masked map.
        teacher_map: [B, C, H, W].

    Returns:
        Scalar, mean over the batch; it grows with C * H * W. Zero when both maps are equal.
    """
    return (generated_map - teacher_map).square().sum() / len(generated_map)


def mask_at_random(
    feature_map: Tensor,
    *,
    mask: Mask,
    masked_share: float,
    rand: Callable[..., Tensor] = torch.rand,
) -> Tensor:
    """Sets random channels or positions of each image's map to zero, independently.

    Args:
        feature_map: [B, C, H, W].
        mask: `channels`, with all their positions; `positions`, with all their channels.
        masked_share: probability of being set to zero, 0 to 1.
        rand: draws uniform numbers.

    Returns:
        [B, C, H, W]; other values are not rescaled.
    """
    images, channels, height, width = feature_map.shape
    size = (images, channels, 1, 1) if mask == "channels" else (images, 1, height, width)
    return feature_map * (rand(size, device=feature_map.device) >= masked_share)


class Generator(nn.Module):
    """Projects a student's map to the teacher's channels, masks it, and generates a full map.

    Args:
        student_channels: Cs.
        teacher_channels: Ct.
        mask: what to mask.
        masked_share: probability of masking, 0 to 1.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, *, mask: Mask, masked_share: float
    ) -> None:
        super().__init__()
        self.mask: Mask = mask
        self.masked_share = masked_share
        same = student_channels == teacher_channels
        self.align = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, 1)
        self.generate = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, student_map: Tensor, rand: Callable[..., Tensor] = torch.rand) -> Tensor:
        """[B, Cs, H, W] to [B, Ct, H, W]; `rand` draws uniform numbers."""
        aligned = self.align(student_map)
        masked = mask_at_random(aligned, mask=self.mask, masked_share=self.masked_share, rand=rand)
        generated: Tensor = self.generate(masked)
        return generated


class MGD(Method):
    """A small network generates the teacher's map from a randomly masked one of the student."""

    paper: ClassVar[str] = "arXiv:2205.01529"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published(
            "cls_KD, configs/distillers/cifar100/res34_distill_res18_cifar.py", {"weight": 0.0012}
        ),
        "imagenet": Published("cls_KD, configs/distillers/imagenet/res34_distill_res18_img.py"),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS})
    batch_symmetric: ClassVar[bool] = False

    class Params(method.Params):
        # Published for maps of 512 x 7 x 7 = 25,088 and of 2048 x 7 x 7 elements. For the 64 x 8 x
        # 8 = 4,096 of a CIFAR network, 4e-4 to 2e-3 give the same scale.
        weight: Annotated[float, Field(ge=0), Span(1e-6, 1e-2, log=True)] = 7e-5
        masked_share: Annotated[float, Field(ge=0, lt=1), Span(0.0, 0.75)] = 0.15
        # The authors mask channels for classification, positions for detection and segmentation.
        mask: Annotated[Mask, Choice(("channels", "positions"))] = "channels"
        layers: Annotated[str, LayerChoice()] = LAST

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)
        self.generators = nn.ModuleList(
            Generator(
                networks.student.maps[pair.student][0],
                networks.teacher.maps[pair.teacher][0],
                mask=params.mask,
                masked_share=params.masked_share,
            )
            for pair in self.pairs
        )

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = []
        for pair, generator in zip(self.pairs, self.generators, strict=True):
            student_map, teacher_map = match_spatial(
                student.maps[pair.student], teacher.maps[pair.teacher]
            )
            losses.append(mgd_loss(generator(student_map, batch.rand), teacher_map))
        return sum(losses[1:], start=losses[0])
