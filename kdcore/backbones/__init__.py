"""The networks that can teach or learn.

Each file that defines `NETWORKS` is a family of the catalogue. Two kinds of name stand for more:
`resnet50+fpn` for a pyramid over another network (see `fpn`), `torchvision/resnet50` and
`timm/resnet50` for the networks of these libraries (see `libraries`).
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcore.backbones import libraries
from kdcore.backbones.backbone import Backbone
from kdcore.backbones.fpn import pyramid_constructor
from kdcore.suggestion import did_you_mean
from kdcore.taps import Shapes, Tap

__all__ = [
    "BACKBONES",
    "Backbone",
    "Probe",
    "affine_parameters",
    "build_backbone",
    "check_backbone",
    "probe",
    "probe_shapes",
]

Constructor = Callable[[int, int], Backbone]


def _collect() -> dict[str, Constructor]:
    networks: dict[str, Constructor] = {}
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        networks |= getattr(module, "NETWORKS", {})
    return networks


BACKBONES: Mapping[str, Constructor] = _collect()
"""Name -> constructor from (num_classes, in_channels)."""


def constructor_of(name: str) -> Constructor:
    """The constructor, from (num_classes, in_channels), of a network with this name.

    Raises:
        ValueError: there is no such network.
    """
    if "+" in name:
        return pyramid_constructor(name, constructor_of)
    if (constructor := libraries.constructor_of(name)) is not None:
        return constructor
    if name not in BACKBONES:
        raise ValueError(
            f"unknown backbone {name!r}{did_you_mean(name, BACKBONES)} "
            f"The catalogue has {', '.join(BACKBONES)}"
        )
    return BACKBONES[name]


def check_backbone(name: str) -> str:
    """Returns the name of a known backbone.

    Raises:
        ValueError: there is no such network.
    """
    constructor_of(name)
    return name


def build_backbone(name: str, *, num_classes: int, in_channels: int, seed: int) -> Backbone:
    """Builds a network with fresh weights; the same seed gives the same weights.

    Args:
        name: of the network.
        num_classes: K, >= 2.
        in_channels: channels of the images, >= 1.
        seed: of the initial weights; PyTorch's global random state is left as it was.

    Raises:
        ValueError: there is no such network, or it does not take so many channels.
    """
    constructor = constructor_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return constructor(num_classes, in_channels)


def affine_parameters(backbone: Backbone) -> dict[str, tuple[Tensor, Tensor]]:
    """By tap name, copies of gamma and beta [C] of the batch norms that `Backbone.norms` names."""
    return {
        name: (
            torch.cat([norm.weight.detach() for norm in norms]),
            torch.cat([norm.bias.detach() for norm in norms]),
        )
        for name, norms in backbone.norms().items()
    }


@dataclass(frozen=True)
class Probe:
    """What is known of a network without computing anything.

    Args:
        shapes: of its outputs.
        fresh_norms: `affine_parameters` before any training.
    """

    shapes: Shapes
    fresh_norms: Mapping[str, tuple[Tensor, Tensor]]


def probe(name: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> Probe:
    """Measures a network's outputs on a probe image, without allocating or computing anything.

    Args:
        name: of the network.
        num_classes: K, >= 2.
        in_channels: channels of the images, >= 1.
        image_size: height and width in pixels.

    Raises:
        ValueError: there is no such network, or the images are too small for it; the message says
            which size is the smallest.
    """
    with torch.device("meta"), torch.no_grad():
        backbone = constructor_of(name)(num_classes, in_channels).eval()
        try:
            taps = backbone.taps(torch.empty(2, in_channels, *image_size), frozenset({Tap.MAPS}))
        except _REFUSALS as error:
            raise ValueError(_size_refusal(name, backbone, image_size, error)) from None
    shapes = Shapes(
        network=name,
        stem=backbone.stem.name if backbone.stem else "",
        stages=tuple(tap.name for tap in backbone.stages),
        maps={
            key: (value.shape[1], value.shape[2], value.shape[3])
            for key, value in taps.maps.items()
        },
        embedding_width=taps.embedding.shape[1],
        num_classes=taps.logits.shape[1],
    )
    fresh = {
        key: (torch.ones(len(gamma)), torch.zeros(len(gamma)))
        for key, (gamma, _) in affine_parameters(backbone).items()
    }
    return Probe(shapes, fresh)


def probe_shapes(
    name: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> Shapes:
    """The shapes alone of what `probe` measures."""
    return probe(
        name, num_classes=num_classes, in_channels=in_channels, image_size=image_size
    ).shapes


# What networks raise for images that they cannot take; an assertion from some of the libraries'.
_REFUSALS = (RuntimeError, ValueError, AssertionError)


def _size_refusal(
    name: str, backbone: Backbone, image_size: tuple[int, int], error: Exception
) -> str:
    """Why images of this size cannot be used; the network lies on the meta device."""
    height, width = image_size

    def takes(height: int, width: int) -> bool:
        try:
            backbone.taps(torch.empty(2, backbone.in_channels, height, width), frozenset())
        except _REFUSALS:
            return False
        return True

    native_height, native_width = backbone.native_size
    low, high = 0, max(backbone.native_size)  # the native size works
    while high - low > 1:
        side = (low + high) // 2
        if takes(side, side):
            high = side
        else:
            low = side
    if not takes(2 * native_height, 2 * native_width):
        return f"images are {height}x{width}, but {name} takes {native_height}x{native_width} alone"
    if min(image_size) >= high:  # not too small, then: perhaps no multiple of something
        return f"images are {height}x{width}, which {name} does not take: {error}"
    return f"images are {height}x{width}, too small for {name}: the smallest are {high}x{high}"
