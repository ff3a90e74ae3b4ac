"""Networks of inception modules: parallel branches whose maps are concatenated.

- `inception_v1*`: Going Deeper with Convolutions (GoogLeNet). Szegedy, Liu, Jia, Sermanet,
  Reed, Anguelov, Erhan, Vanhoucke and Rabinovich, 2014, arXiv:1409.4842, table 1. Auxiliary
  classifiers read 4a and 4d as in section 5, after an average pooling to 4x4 for maps of any
  size. `_bn` has batch norm instead of local response normalisation and of biases; so
  has `_cifar`, whose stem is one 3x3 convolution, which pools only between the stages, and
  which has no auxiliary classifiers.
- `bn_inception`: Batch Normalization: Accelerating Deep Network Training by Reducing Internal
  Covariate Shift. Ioffe and Szegedy, 2015, arXiv:1502.03167, figure 5. The widths of the
  branches of 4c and 4d add up to 608, not to the 576 in the table; we follow the well-known
  Caffe model in using them, and in a first convolution that is not separable. No dropout
  (section 4.2.1).
- `inception_v2*`: Rethinking the Inception Architecture for Computer Vision. Szegedy,
  Vanhoucke, Ioffe, Shlens and Wojna, 2015, arXiv:1512.00567, table 1. The paper gives the
  widths of maps, not of branches: those are the published Inception v3's, whose modules for the
  17x17 and 8x8 grids (figures 6 and 7) and reductions of the grid (figure 10) are taken over;
  on the 35x35 grid both branches have 3x3 convolutions (figure 5). As in table 1, what halves
  the grid is not padded, nor are two more convolutions of the stem: maps are smaller than image
  side / reduction, namely (side - 19) / 8, (side - 27) / 16 and (side - 43) / 32, rounded down.
  `_cifar` pads them all, and its stem halves and pools nothing.

Modules return their concatenated maps before the ReLU.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from kdcore.backbones.backbone import Backbone
from kdcore.contract.taps import TapInfo


@dataclass(frozen=True)
class Conv:
    """A convolution to `width` channels, with batch norm and ReLU."""

    width: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padded: bool = True


Weightless: TypeAlias = Callable[[], nn.Module]
"""Builds a layer without weights, which does not change the number of channels."""

Steps: TypeAlias = "tuple[Conv | Weightless | Split, ...]"
"""Layers in sequence; branches can only be the last."""

Split: TypeAlias = tuple[Steps, ...]
"""Parallel branches."""


class Chain(nn.Sequential):
    """Layers in sequence, without a ReLU at the end.

    Args:
        in_channels: of the input map.
        steps: the layers.
        batch_norm: after each convolution, instead of a bias.
    """

    def __init__(self, in_channels: int, steps: Steps, *, batch_norm: bool) -> None:
        super().__init__()
        self.out_channels = in_channels
        for number, step in enumerate(steps, start=1):
            if isinstance(step, Conv):
                self._append(step, batch_norm)
                if number < len(steps):
                    self.append(nn.ReLU())
            elif isinstance(step, tuple):
                branches = Branches(self.out_channels, step, batch_norm=batch_norm)
                self.append(branches)
                self.out_channels = branches.out_channels
            else:
                self.append(step())

    def _append(self, conv: Conv, batch_norm: bool) -> None:
        kernel = conv.kernel if isinstance(conv.kernel, tuple) else (conv.kernel, conv.kernel)
        padding = (kernel[0] // 2, kernel[1] // 2) if conv.padded else (0, 0)
        self.append(
            nn.Conv2d(
                self.out_channels, conv.width, kernel, conv.stride, padding, bias=not batch_norm
            )
        )
        if batch_norm:
            # The papers do not specify epsilon; this is the value in the authors' code.
            self.append(nn.BatchNorm2d(conv.width, eps=1e-3))
        self.out_channels = conv.width


class Branches(nn.ModuleList):
    """Parallel chains. Returns their concatenated maps, before the ReLU.

    Args:
        in_channels: of the input map.
        branches: the layers of each.
        batch_norm: after each convolution, instead of a bias.
    """

    def __init__(self, in_channels: int, branches: Split, *, batch_norm: bool) -> None:
        chains = [Chain(in_channels, steps, batch_norm=batch_norm) for steps in branches]
        super().__init__(chains)
        self.out_channels = sum(chain.out_channels for chain in chains)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([chain(x) for chain in self], 1)


def _last_norms(layer: nn.Module) -> tuple[nn.BatchNorm2d, ...]:
    """The norms at the ends of the branches, in the order of concatenation."""
    if isinstance(layer, Branches):
        return tuple(norm for chain in layer for norm in _last_norms(chain))
    if isinstance(layer, Chain):
        return _last_norms(layer[-1])
    return (layer,) if isinstance(layer, nn.BatchNorm2d) else ()


class AuxiliaryClassifier(nn.Sequential):
    """Logits [B, K] from an intermediate map (section 5 of GoogLeNet's paper)."""

    def __init__(self, in_channels: int, num_classes: int, *, batch_norm: bool) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(4),
            Chain(in_channels, (Conv(128),), batch_norm=batch_norm),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 1024),
            nn.ReLU(),
            nn.Dropout(0.7),
            nn.Linear(1024, num_classes),
        )


class Inception(Backbone):
    """A network of inception modules.

    Args:
        num_classes: K.
        in_channels: channels of the images.
        stem: the layers up to the first tap.
        entrances: per stage, layers without weights before its modules.
        modules: per stage, the branches of its modules, by name.
        reductions: image side / map side of the stem and of each stage.
        native_side: side in pixels of the square images that it was designed for.
        batch_norm: after each convolution, instead of a bias.
        dropout: rate, applied to the embedding.
        auxiliary: names of the modules that auxiliary classifiers read.
    """

    stem: TapInfo

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        stem: Steps,
        entrances: Sequence[Sequence[Weightless]],
        modules: Sequence[Mapping[str, Split]],
        reductions: Sequence[int],
        native_side: int,
        batch_norm: bool = True,
        dropout: float = 0.0,
        auxiliary: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.native_size = (native_side, native_side)
        self.first = Chain(in_channels, stem, batch_norm=batch_norm)
        channels = self.first.out_channels
        self.stem = TapInfo("stem", channels, reductions[0])
        self.entrances = nn.ModuleList(
            nn.Sequential(*(make() for make in entrance)) for entrance in entrances
        )
        self._names = [tuple(branches_of) for branches_of in modules]
        stages = []
        for number, branches_of in enumerate(modules, start=1):
            for name, branches in branches_of.items():
                module = Branches(channels, branches, batch_norm=batch_norm)
                self.add_module(name, module)
                channels = module.out_channels
                if name in auxiliary:
                    self.auxiliary[name] = AuxiliaryClassifier(
                        channels, num_classes, batch_norm=batch_norm
                    )
            stages.append(TapInfo(f"stage{number}", channels, reductions[number]))
        self.stages = tuple(stages)
        self.auxiliary_weight = 0.3 if auxiliary else 0.0
        self.embedding_width = channels
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        # The papers do not specify an initialisation. This one preserves the scale of maps, without
        # which the network without norms does not train.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        last_modules = [self.get_submodule(names[-1]) for names in self._names]
        norms = {
            tap.name: _last_norms(layer)
            for tap, layer in zip(self.declared, [self.first, *last_modules], strict=True)
        }
        return {name: found for name, found in norms.items() if found}

    def classify(self, embedding: Tensor) -> Tensor:
        return super().classify(self.dropout(embedding))

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        before = self.first(images)
        after = relu(before)
        yield self.stem, before, after
        for tap, entrance, names in zip(self.stages, self.entrances, self._names, strict=True):
            after = entrance(after)
            for name in names:
                before = self.get_submodule(name)(after)
                after = relu(before)
                if self.training and name in self.auxiliary:
                    yield TapInfo(name, after.shape[1], tap.reduction), before, after
            yield tap, before, after


_MAX = partial(nn.MaxPool2d, 3, 1, 1)
_AVERAGE = partial(nn.AvgPool2d, 3, 1, 1)
_HALVE = partial(nn.MaxPool2d, 3, 2, 1)
# GoogLeNet's paper gives no constants; these are from the well-known Caffe model.
_RESPONSE_NORM = partial(nn.LocalResponseNorm, 5, alpha=1e-4, beta=0.75, k=1.0)


# Inception v1


def _figure2(
    one: int, three_reduce: int, three: int, five_reduce: int, five: int, pooled: int
) -> Split:
    return (
        (Conv(one),),
        (Conv(three_reduce), Conv(three, 3)),
        (Conv(five_reduce), Conv(five, 5)),
        (_MAX, Conv(pooled)),
    )


_V1_MODULES: Sequence[Mapping[str, Split]] = (
    {
        "inception3a": _figure2(64, 96, 128, 16, 32, 32),
        "inception3b": _figure2(128, 128, 192, 32, 96, 64),
    },
    {
        "inception4a": _figure2(192, 96, 208, 16, 48, 64),
        "inception4b": _figure2(160, 112, 224, 24, 64, 64),
        "inception4c": _figure2(128, 128, 256, 24, 64, 64),
        "inception4d": _figure2(112, 144, 288, 32, 64, 64),
        "inception4e": _figure2(256, 160, 320, 32, 128, 128),
    },
    {
        "inception5a": _figure2(256, 160, 320, 32, 128, 128),
        "inception5b": _figure2(384, 192, 384, 48, 128, 128),
    },
)


# BN-Inception


def _double(
    one: int,
    three_reduce: int,
    three: int,
    double_reduce: int,
    double: int,
    pool: Weightless,
    pooled: int,
) -> Split:
    return (
        (Conv(one),),
        (Conv(three_reduce), Conv(three, 3)),
        (Conv(double_reduce), Conv(double, 3), Conv(double, 3)),
        (pool, Conv(pooled)),
    )


def _double_halving(three_reduce: int, three: int, double_reduce: int, double: int) -> Split:
    return (
        (Conv(three_reduce), Conv(three, 3, 2)),
        (Conv(double_reduce), Conv(double, 3), Conv(double, 3, 2)),
        (_HALVE,),
    )


_BN_MODULES: Sequence[Mapping[str, Split]] = (
    {
        "inception3a": _double(64, 64, 64, 64, 96, _AVERAGE, 32),
        "inception3b": _double(64, 64, 96, 64, 96, _AVERAGE, 64),
    },
    {
        "inception3c": _double_halving(128, 160, 64, 96),
        "inception4a": _double(224, 64, 96, 96, 128, _AVERAGE, 128),
        "inception4b": _double(192, 96, 128, 96, 128, _AVERAGE, 128),
        "inception4c": _double(160, 128, 160, 128, 160, _AVERAGE, 128),
        "inception4d": _double(96, 128, 192, 160, 192, _AVERAGE, 128),
    },
    {
        "inception4e": _double_halving(128, 192, 192, 256),
        "inception5a": _double(352, 192, 320, 160, 224, _AVERAGE, 128),
        "inception5b": _double(352, 192, 320, 192, 224, _MAX, 128),
    },
)

# Inception v2

_FIGURE5: Split = (
    (Conv(64),),
    (Conv(48), Conv(64, 3)),
    (Conv(64), Conv(96, 3), Conv(96, 3)),
    (_AVERAGE, Conv(64)),
)


def _figure6(width: int) -> Split:
    wide, tall = Conv(width, (1, 7)), Conv(width, (7, 1))
    return (
        (Conv(192),),
        (Conv(width), wide, Conv(192, (7, 1))),
        (Conv(width), tall, wide, tall, Conv(192, (1, 7))),
        (_AVERAGE, Conv(192)),
    )


_WIDENED: Split = ((Conv(384, (1, 3)),), (Conv(384, (3, 1)),))
_FIGURE7: Split = (
    (Conv(320),),
    (Conv(384), _WIDENED),
    (Conv(448), Conv(384, 3), _WIDENED),
    (_AVERAGE, Conv(192)),
)


def _v2_modules(*, padded: bool) -> Sequence[Mapping[str, Split]]:
    halve = partial(nn.MaxPool2d, 3, 2, int(padded))
    return (
        {"inception3a": _FIGURE5, "inception3b": _FIGURE5, "inception3c": _FIGURE5},
        {
            "reduction4": (
                (Conv(384, 3, 2, padded),),
                (Conv(64), Conv(96, 3), Conv(96, 3, 2, padded)),
                (halve,),
            ),
            # Inception v3 has four of these; we repeat the middle width.
            "inception4a": _figure6(128),
            "inception4b": _figure6(160),
            "inception4c": _figure6(160),
            "inception4d": _figure6(160),
            "inception4e": _figure6(192),
        },
        {
            "reduction5": (
                (Conv(192), Conv(320, 3, 2, padded)),
                (
                    Conv(192),
                    Conv(192, (1, 7)),
                    Conv(192, (7, 1)),
                    Conv(192, 3, 2, padded),
                ),
                (halve,),
            ),
            "inception5a": _FIGURE7,
            "inception5b": _FIGURE7,
        },
    )


NETWORKS: Mapping[str, Callable[[int, int], Backbone]] = {
    "inception_v1": partial(
        Inception,
        stem=(Conv(64, 7, 2), _HALVE, _RESPONSE_NORM, Conv(64), Conv(192, 3)),
        entrances=((_RESPONSE_NORM, _HALVE), (_HALVE,), (_HALVE,)),
        modules=_V1_MODULES,
        reductions=(4, 8, 16, 32),
        native_side=224,
        batch_norm=False,
        dropout=0.4,
        auxiliary=("inception4a", "inception4d"),
    ),
    "inception_v1_bn": partial(
        Inception,
        stem=(Conv(64, 7, 2), _HALVE, Conv(64), Conv(192, 3)),
        entrances=((_HALVE,), (_HALVE,), (_HALVE,)),
        modules=_V1_MODULES,
        reductions=(4, 8, 16, 32),
        native_side=224,
        dropout=0.4,
        auxiliary=("inception4a", "inception4d"),
    ),
    "inception_v1_cifar": partial(
        Inception,
        stem=(Conv(192, 3),),
        entrances=((), (_HALVE,), (_HALVE,)),
        modules=_V1_MODULES,
        reductions=(1, 1, 2, 4),
        native_side=32,
        dropout=0.4,
    ),
    "bn_inception": partial(
        Inception,
        stem=(Conv(64, 7, 2), _HALVE, Conv(64), Conv(192, 3)),
        entrances=((_HALVE,), (), ()),
        modules=_BN_MODULES,
        reductions=(4, 8, 16, 32),
        native_side=224,
    ),
    "inception_v2": partial(
        Inception,
        stem=(
            Conv(32, 3, 2, padded=False),
            Conv(32, 3, padded=False),
            Conv(64, 3),
            partial(nn.MaxPool2d, 3, 2),
            Conv(80, 3, padded=False),
            Conv(192, 3, 2, padded=False),
            Conv(288, 3),
        ),
        entrances=((), (), ()),
        modules=_v2_modules(padded=False),
        reductions=(8, 8, 16, 32),
        native_side=299,
    ),
    "inception_v2_cifar": partial(
        Inception,
        stem=tuple(Conv(width, 3) for width in (32, 32, 64, 80, 192, 288)),
        entrances=((), (), ()),
        modules=_v2_modules(padded=True),
        reductions=(1, 1, 2, 4),
        native_side=32,
    ),
}
