"""ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices. Zhang,
Zhou, Lin and Sun, 2017, arXiv:1707.01083. ShuffleNet V2: Practical Guidelines for Efficient CNN
Architecture Design. Ma, Zhang, Zheng and Sun, 2018, arXiv:1807.11164.

Both are the distillation literature's networks for CIFAR: the stem is a 1x1 convolution without
stride or pooling. `shufflenetv1` is table 1's network of 3 groups; as in that literature, its
units have a ReLU after the depthwise convolution too, and at stride 2 their inner width is a
quarter of the channels that they add. `shufflenetv2` is table 5's network of width 1.
That literature trains both with a learning rate of 0.01, where ResNets have 0.05.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from kdcore.backbones.backbone import Backbone
from kdcore.contract.taps import TapInfo

_STEM_CHANNELS = 24
_GROUPS = 3
_DEPTHS = (4, 8, 4)  # units of each stage
_LAST_CHANNELS = 1024


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
    )


class GroupUnit(nn.Module):
    """Grouped 1x1 convolutions around a shuffle of the groups and a depthwise convolution (V1,
    figure 2 b and c). Returns what the last ReLU reads."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        added = out_channels if stride == 1 else out_channels - in_channels
        width = added // 4
        # The stem's channels are too few to be split (section 3.3).
        groups = 1 if in_channels == _STEM_CHANNELS else _GROUPS
        self.reduce = _convolution(in_channels, width, groups=groups)
        self.shuffle = nn.ChannelShuffle(groups)
        self.depthwise = _convolution(width, width, 3, stride, groups=width)
        self.expand = nn.Conv2d(width, added, 1, groups=_GROUPS, bias=False)
        self.last_norm = nn.BatchNorm2d(added)
        self.relu = nn.ReLU()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.shuffle(self.relu(self.reduce(x)))
        residual: Tensor = self.last_norm(self.expand(self.relu(self.depthwise(reduced))))
        if self.stride == 1:
            return residual + x
        return torch.cat([residual, avg_pool2d(x, 3, self.stride, 1)], 1)


class SplitUnit(nn.Module):
    """One half of the channels passes, the other is convolved, both are shuffled; at stride 2
    both branches convolve all channels (V2, figure 3 c and d). Returns what the ReLU reads."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = out_channels // 2
        self.shortcut = (
            None
            if stride == 1
            else nn.Sequential(
                _convolution(in_channels, in_channels, 3, stride, groups=in_channels),
                _convolution(in_channels, width),
            )
        )
        self.reduce = _convolution(width if stride == 1 else in_channels, width)
        self.depthwise = _convolution(width, width, 3, stride, groups=width)
        self.expand = _convolution(width, width)
        self.shuffle = nn.ChannelShuffle(2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        # A half that passes has been through a ReLU: the next one does not change it.
        passed, x = x.chunk(2, 1) if self.shortcut is None else (self.shortcut(x), x)
        convolved = self.expand(self.depthwise(self.relu(self.reduce(x))))
        shuffled: Tensor = self.shuffle(torch.cat([passed, convolved], 1))
        return shuffled


class ShuffleNet(Backbone):
    """Base of both: three stages, whose first units halve the resolution.

    Args:
        num_classes: K.
        in_channels: channels of the images.
        unit: class of the units.
        widths: channels of each stage.
    """

    stem: TapInfo

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        unit: type[GroupUnit] | type[SplitUnit],
        widths: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.native_size = (32, 32)
        self.conv1 = nn.Conv2d(in_channels, _STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM_CHANNELS)
        self.relu = nn.ReLU()
        self.stem = TapInfo("stem", _STEM_CHANNELS, 1)
        # Weights keep PyTorch's default initialisation, as in published results.
        self.layers = nn.ModuleList()
        stages = []
        channels = _STEM_CHANNELS
        for number, (depth, width) in enumerate(zip(_DEPTHS, widths, strict=True), start=1):
            units = nn.Sequential(unit(channels, width, stride=2))
            units.extend(unit(width, width, stride=1) for _ in range(depth - 1))
            self.layers.append(units)
            channels = width
            stages.append(TapInfo(f"stage{number}", channels, 2**number))
        self.stages = tuple(stages)

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        return {self.stem.name: (self.bn1,)}

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        before = self.bn1(self.conv1(images))
        after = self.relu(before)
        yield self.stem, before, after
        for tap, units in zip(self.stages, self.layers, strict=True):
            for unit in units.children():
                before = unit(after)
                after = self.relu(before)
            yield tap, before, after


class ShuffleNetV1(ShuffleNet):
    """Grouped units; the classifier reads the last stage.

    Args:
        num_classes: K.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(
            num_classes,
            in_channels,
            unit=GroupUnit,
            widths=(240, 480, 960),
        )
        self.embedding_width = self.stages[-1].channels
        self.fc = nn.Linear(self.embedding_width, num_classes)

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        norms = dict(super().norms())
        for tap, units in zip(self.stages, self.layers, strict=True):
            *_, last_unit = units.children()
            assert isinstance(last_unit, GroupUnit)
            norms[tap.name] = (last_unit.last_norm,)
        return norms


class ShuffleNetV2(ShuffleNet):
    """Splitting units; the classifier reads a 1x1 convolution of the last stage.

    Half of a stage's channels bypass its last unit, so that no single norm produces its map.

    Args:
        num_classes: K.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(
            num_classes,
            in_channels,
            unit=SplitUnit,
            widths=(116, 232, 464),
        )
        self.last = _convolution(self.stages[-1].channels, _LAST_CHANNELS)
        self.embedding_width = _LAST_CHANNELS
        self.fc = nn.Linear(_LAST_CHANNELS, num_classes)

    def pooled(self, maps: Sequence[Tensor]) -> Tensor:
        wide: Tensor = self.relu(self.last(maps[-1]))
        return wide


NETWORKS: Mapping[str, Callable[[int, int], Backbone]] = {
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
}
