"""Very Deep Convolutional Networks for Large-Scale Image Recognition. Simonyan and Zisserman,
2014, arXiv:1409.1556.

`vgg11` to `vgg19` are configurations A, B, D and E of table 1; `_bn` has batch norm after every
convolution, which the paper predates. Adaptive pooling before the hidden layers allows
images of any size from 32x32. Modules are named as in torchvision, so that its state dicts load.

`vgg8` and the `_cifar` networks are those of the distillation literature for small images:
batch norm, pooling after the first three blocks only, and one linear layer on the mean of the
last map.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone
from kdcore.contract.taps import TapInfo

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(Backbone):
    """Five blocks of 3x3 convolutions, each with a tap; subclasses add the rest.

    Args:
        num_classes: K.
        in_channels: channels of the images.
        depths: convolutions in each block.
        batch_norm: after every convolution.
        poolings: number of blocks, from the first, that end with max pooling.
        round_up: pool 7 pixels to 4, not 3.
    """

    stem: TapInfo

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        depths: tuple[int, ...],
        batch_norm: bool,
        poolings: int,
        round_up: bool,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.features = nn.Sequential()
        self._ends: list[int] = []  # positions of the last ReLUs of the blocks
        channels, reduction = in_channels, 1
        taps = []
        for number, (depth, width) in enumerate(zip(depths, _WIDTHS, strict=True)):
            for _ in range(depth):
                self.features.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU())
                channels = width
            self._ends.append(len(self.features) - 1)
            taps.append(TapInfo(f"stage{number}" if number else "stem", width, reduction))
            if number < poolings:
                self.features.append(nn.MaxPool2d(2, ceil_mode=round_up))
                reduction *= 2
        self.stem, *stages = taps
        self.stages = tuple(stages)

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        last_layers = {
            tap.name: self.features[end - 1]
            for tap, end in zip(self.declared, self._ends, strict=True)
        }
        return {
            name: (layer,)
            for name, layer in last_layers.items()
            if isinstance(layer, nn.BatchNorm2d)
        }

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        after = images
        between = pairwise((-1, *self._ends))
        for tap, (previous, end) in zip(self.declared, between, strict=True):
            before = self.features[previous + 1 : end](after)
            after = self.features[end](before)
            yield tap, before, after

    def _initialise(self) -> None:
        """Fresh weights.

        The paper initialises deep configurations with trained weights of the shallow one (section
        3.1). With the scale of He et al. (arXiv:1502.01852), that is not necessary.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class ImageNetVGG(VGG):
    """A network of the paper: pooling after every block, two hidden layers with dropout."""

    def __init__(
        self, num_classes: int, in_channels: int, *, depths: tuple[int, ...], batch_norm: bool
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            depths=depths,
            batch_norm=batch_norm,
            poolings=5,
            round_up=False,
        )
        self.native_size = (224, 224)
        self.embedding_width = 4096
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(_WIDTHS[-1] * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )
        self._initialise()

    def pooled(self, maps: Sequence[Tensor]) -> None:
        """Its embedding is that of hidden layers."""

    def embed(self, maps: Sequence[Tensor]) -> Tensor:
        pooled = self.avgpool(self.features[-1](maps[-1])).flatten(1)
        embedding: Tensor = self.classifier[:-2](pooled)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        logits: Tensor = self.classifier[-2:](embedding)
        return logits

    def last_layer(self) -> nn.Linear:
        layer = self.classifier[-1]
        assert isinstance(layer, nn.Linear)
        return layer


class CifarVGG(VGG):
    """A network for small images: maps of 32, 16, 8, 4 and 4 pixels for images of 32x32."""

    def __init__(self, num_classes: int, in_channels: int, *, depths: tuple[int, ...]) -> None:
        # Rounded up, the maps of 28x28 images have the sizes of a residual network's.
        super().__init__(
            num_classes, in_channels, depths=depths, batch_norm=True, poolings=3, round_up=True
        )
        self.native_size = (32, 32)
        self.embedding_width = _WIDTHS[-1]
        self.fc = nn.Linear(_WIDTHS[-1], num_classes)
        self._initialise()


_DEPTHS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}

NETWORKS: Mapping[str, Callable[[int, int], Backbone]] = {
    **{
        f"vgg{layers}{suffix}": partial(
            ImageNetVGG, depths=_DEPTHS[layers], batch_norm=bool(suffix)
        )
        for layers in (11, 13, 16, 19)
        for suffix in ("", "_bn")
    },
    "vgg8": partial(CifarVGG, depths=_DEPTHS[8]),
    **{
        f"vgg{layers}_cifar": partial(CifarVGG, depths=_DEPTHS[layers])
        for layers in (11, 13, 16, 19)
    },
}
