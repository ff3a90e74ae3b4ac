"""Wide Residual Networks. Zagoruyko and Komodakis, 2016, arXiv:1605.07146.

`wrn_16_2` has 16 layers and twice the basic width (table 1), no dropout. Norm and ReLU precede
the convolutions here, and a stage ends in a sum without activation. The stages' taps are where the
next stage, or the classifier, has normalised and activated that sum.

The sums are taps too, `stage1_sum` to `stage3_sum`, which are read only where a pair of layers
names them. Published figures of AT, SP and NST for these networks are of the sums, which
RepDistiller's code reads.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.drop_path import DropPath
from kdcore.contract.taps import TapInfo

_NOTE_OF_SUM = "residual sum, before norm and ReLU; only by name"


class PreactivationBlock(nn.Module):
    """Two 3x3 convolutions (figure 1c), with the norm that reads their sum.

    That norm is usually drawn as the beginning of the next block. Here it ends this one, so
    that a stage makes its own tap.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = (
            None
            if stride == 1 and in_channels == width
            else nn.Conv2d(in_channels, width, 1, stride, bias=False)
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.drop_path = DropPath()

    def forward(self, x: Tensor, activated: Tensor) -> tuple[Tensor, Tensor]:
        """The block's sum, and that sum normalised; both [B, width, H / stride, W / stride].

        Args:
            x: [B, in_channels, H, W], the previous sum, which an identity shortcut carries.
            activated: the same, normalised and activated, which a projection shortcut reads.
        """
        residual = self.conv2(self.relu(self.bn1(self.conv1(activated))))
        kept: Tensor = self.drop_path(residual)
        x = kept + (x if self.shortcut is None else self.shortcut(activated))
        return x, self.bn2(x)


class WideResNet(Backbone):
    """A wide residual network.

    Args:
        num_classes: K.
        in_channels: channels of the images.
        depth: number of layers: 4, and 6 for each block of a stage.
        widening: width of the stages, relative to 16, 32 and 64 channels.
    """

    stem: TapInfo

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        depth: int,
        widening: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.native_size = (32, 32)
        channels = 16
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.stem = TapInfo("stem", channels, 1)
        self.groups = nn.ModuleList()
        stages, sums = [], []
        for number, reduction in enumerate((1, 2, 4), start=1):
            width = 16 * reduction * widening
            blocks = nn.ModuleList()
            for position in range((depth - 4) // 6):
                stride = 2 if number > 1 and position == 0 else 1
                blocks.append(PreactivationBlock(channels, width, stride))
                channels = width
            self.groups.append(blocks)
            stages.append(TapInfo(f"stage{number}", width, reduction))
            sums.append(TapInfo(f"stage{number}_sum", width, reduction, "none", _NOTE_OF_SUM))
        self.stages = tuple(stages)
        self.further = {tap.name: tap for tap in sums}
        self.embedding_width = channels
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        norms = {self.stem.name: (self.bn1,)}
        for tap, group in zip(self.stages, self.groups, strict=True):
            *_, last_block = group.children()
            assert isinstance(last_block, PreactivationBlock)
            norms[tap.name] = (last_block.bn2,)
        return norms

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        x = self.conv1(images)
        before = self.bn1(x)
        after = self.relu(before)
        yield self.stem, before, after
        sums = self.further.values()
        for tap, sum_tap, group in zip(self.stages, sums, self.groups, strict=True):
            for block in group.children():
                x, before = block(x, after)
                after = self.relu(before)
            yield tap, before, after
            yield sum_tap, x, x


NETWORKS: Mapping[str, Callable[[int, int], Backbone]] = {
    f"wrn_{depth}_{widening}": partial(WideResNet, depth=depth, widening=widening)
    for depth, widening in ((16, 1), (16, 2), (40, 1), (40, 2))
}
