"""Deep Residual Learning for Image Recognition. He, Zhang, Ren and Sun, 2015, arXiv:1512.03385.

With three stages: the CIFAR networks of section 4.2 with projection shortcuts, `resnet8` to
`resnet110`; `x4` has four times the width, as in the distillation literature. With four stages:
the ImageNet networks of table 1 with the stride in the 3x3 convolution of a bottleneck,
`resnet18` to `resnet152`, and `resnet50_cifar`, which has the stem for small images. Modules
are named as in torchvision, so that its state dicts load.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.drop_path import DropPath
from kdcore.contract.taps import TapInfo


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 5, left). Returns the sum before the ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, width, stride)
        self.drop_path = DropPath()

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the shortcut is added."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        kept: Tensor = self.drop_path(residual)
        return kept + (x if self.downsample is None else self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions (figure 5, right). Returns the sum before the ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, out_channels, stride)
        self.drop_path = DropPath()

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm before the shortcut is added."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.relu(self.bn1(self.conv1(x)))
        x2 = self.relu(self.bn2(self.conv2(x1)))
        kept: Tensor = self.drop_path(self.bn3(self.conv3(x2)))
        return kept + (x if self.downsample is None else self.downsample(x))


class ResNet(Backbone):
    """A residual network.

    Args:
        num_classes: K.
        in_channels: channels of the images.
        block: the residual block.
        depths: blocks in each stage.
        stem_width: channels after the stem.
        widths: inner width of each stage.
        small_images: a 3x3 stem without pooling (CIFAR) instead of 7x7, stride 2 and max pooling.
    """

    stem: TapInfo

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        stem_width: int,
        widths: tuple[int, ...],
        small_images: bool,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.native_size = (32, 32) if small_images else (224, 224)
        kernel, stride, padding = (3, 1, 1) if small_images else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, stem_width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        # The stem's map is read before the pooling, right after its activation.
        self.stem = TapInfo("stem", stem_width, stride)
        stages = []
        channels, reduction = stem_width, 1 if small_images else 4
        self._layers: list[str] = []
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            stride = 1 if number == 1 else 2
            blocks = nn.Sequential()
            for position in range(depth):
                blocks.append(block(channels, width, stride if position == 0 else 1))
                channels = width * block.expansion
            reduction *= stride
            self.add_module(f"layer{number}", blocks)
            self._layers.append(f"layer{number}")
            stages.append(TapInfo(f"stage{number}", channels, reduction))
        self.stages = tuple(stages)
        self.embedding_width = channels
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        norms = {self.stem.name: (self.bn1,)}
        for tap, name in zip(self.stages, self._layers, strict=True):
            *_, last_block = self.get_submodule(name).children()
            assert isinstance(last_block, BasicBlock | Bottleneck)
            norms[tap.name] = (last_block.last_norm,)
        return norms

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        before = self.bn1(self.conv1(images))
        after = self.relu(before)
        yield self.stem, before, after
        after = self.maxpool(after)
        for tap, name in zip(self.stages, self._layers, strict=True):
            for residual_block in self.get_submodule(name).children():
                before = residual_block(after)
                after = self.relu(before)
            yield tap, before, after


def _cifar(depth: int, multiplier: int = 1) -> Callable[[int, int], ResNet]:
    # Three stages of blocks with two convolutions, the stem and the classifier.
    blocks = (depth - 2) // 6
    return partial(
        ResNet,
        block=BasicBlock,
        depths=(blocks,) * 3,
        stem_width=16 if multiplier == 1 else 32,
        widths=(16 * multiplier, 32 * multiplier, 64 * multiplier),
        small_images=True,
    )


def _imagenet(
    block: type[BasicBlock] | type[Bottleneck], *depths: int, small_images: bool = False
) -> Callable[[int, int], ResNet]:
    return partial(
        ResNet,
        block=block,
        depths=depths,
        stem_width=64,
        widths=(64, 128, 256, 512),
        small_images=small_images,
    )


NETWORKS: Mapping[str, Callable[[int, int], Backbone]] = {
    **{f"resnet{depth}": _cifar(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _cifar(depth, 4) for depth in (8, 32)},
    "resnet50_cifar": _imagenet(Bottleneck, 3, 4, 6, 3, small_images=True),
    "resnet18": _imagenet(BasicBlock, 2, 2, 2, 2),
    "resnet34": _imagenet(BasicBlock, 3, 4, 6, 3),
    "resnet50": _imagenet(Bottleneck, 3, 4, 6, 3),
    "resnet101": _imagenet(Bottleneck, 3, 4, 23, 3),
    "resnet152": _imagenet(Bottleneck, 3, 8, 36, 3),
}
