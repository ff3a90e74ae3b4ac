"""MobileNetV2: Inverted Residuals and Linear Bottlenecks. Sandler, Howard, Zhu, Zhmoginov and
Chen, 2018, arXiv:1801.04381.

`mobilenetv2` is the distillation literature's network for CIFAR: half of table 2's widths, but
for the last; stride 1 instead of 2 in the blocks of 24 channels; an expanding convolution also
at expansion 1. That literature's codes have ReLU where this one has the paper's ReLU6; they
train it with a learning rate of 0.01, where ResNets have 0.05.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.drop_path import DropPath
from kdcore.contract.taps import TapInfo

# Table 2 by resolution: expansion, output channels at full width, blocks, stride of the first.
_STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
_STEM_CHANNELS = 32
_LAST_CHANNELS = 1280  # not scaled in narrow networks (section 4)


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


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between narrow, linear ends (table 1, figure 4d)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        stride: int,
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = _convolution(in_channels, width)
        self.depthwise = _convolution(width, width, 3, stride, groups=width)
        self.project = _convolution(width, out_channels)
        self.relu = nn.ReLU6()
        self.drop_path = DropPath() if stride == 1 and in_channels == out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        wide = self.relu(self.depthwise(self.relu(self.expand(x))))
        narrow: Tensor = self.project(wide)
        if self.drop_path is None:  # the block has no shortcut
            return narrow
        kept: Tensor = self.drop_path(narrow)
        return x + kept


class MobileNetV2(Backbone):
    """Inverted residuals at half width, for small images.

    Args:
        num_classes: K.
        in_channels: channels of the images.
    """

    stem: TapInfo

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.native_size = (32, 32)
        channels, reduction = _STEM_CHANNELS // 2, 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, reduction, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU6()
        self.stem = TapInfo("stem", channels, reduction, "relu6")
        self.layers = nn.ModuleList()
        stages = []
        for number, rows in enumerate(_STAGES, start=1):
            blocks = nn.Sequential()
            for expansion, full_width, depth, first_stride in rows:
                width = full_width // 2
                for stride in (first_stride, *[1] * (depth - 1)):
                    blocks.append(InvertedResidual(channels, width, expansion, stride))
                    channels = width
                reduction *= first_stride
            self.layers.append(blocks)
            stages.append(TapInfo(f"stage{number}", channels, reduction, "none"))
        self.stages = tuple(stages)
        self.last = _convolution(channels, _LAST_CHANNELS)
        self.embedding_width = _LAST_CHANNELS
        self.fc = nn.Linear(_LAST_CHANNELS, num_classes)
        # The paper does not specify an initialisation; this is that of published results.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        return {self.stem.name: (self.bn1,)}

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        before = self.bn1(self.conv1(images))
        x = self.relu(before)
        yield self.stem, before, x
        for tap, blocks in zip(self.stages, self.layers, strict=True):
            x = blocks(x)
            yield tap, x, x

    def pooled(self, maps: Sequence[Tensor]) -> Tensor:
        wide: Tensor = self.relu(self.last(maps[-1]))
        return wide


NETWORKS: Mapping[str, Callable[[int, int], Backbone]] = {"mobilenetv2": MobileNetV2}
