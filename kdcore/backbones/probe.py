"""Probes a network on the meta device: its shapes, its fresh norms, the images it accepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import constructor_of
from kdcore.backbones.names import versioned
from kdcore.contract.network_pair import Shapes
from kdcore.contract.taps import Tap
from kdcore.errors import NetworkError


def affine_parameters(backbone: Backbone) -> dict[str, tuple[Tensor, Tensor]]:
    """Copies of gamma and beta, each [C], of the norms in `Backbone.norms`, by tap name."""
    return {
        name: (
            torch.cat([norm.weight.detach() for norm in norms]),
            torch.cat([norm.bias.detach() for norm in norms]),
        )
        for name, norms in backbone.norms().items()
    }


def classifier_weight(backbone: Backbone) -> Tensor | None:
    """A copy of the weight [K, D] of the last layer; None where there is none."""
    layer = backbone.last_layer()
    return None if layer is None else layer.weight.detach().flatten(1).clone()


@dataclass(frozen=True)
class Probe:
    """Facts about a network that need no computation.

    Args:
        shapes: of its outputs.
        fresh_norms: its `affine_parameters` before training.
    """

    shapes: Shapes
    fresh_norms: Mapping[str, tuple[Tensor, Tensor]]


def probe(name: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> Probe:
    """Finds the shapes of a network's outputs, without allocating or computing anything; once.

    Args:
        name: of the network.
        num_classes: K, >= 2.
        in_channels: channels of the images, >= 1.
        image_size: height and width in pixels.

    Raises:
        NetworkError: the network is unknown, or does not take images of this size; the message
            gives the smallest size.
    """
    shapes, norms = _found(name, versioned(name), num_classes, in_channels, image_size)
    fresh = {key: (torch.ones(width), torch.zeros(width)) for key, width in norms.items()}
    return Probe(shapes, fresh)


@lru_cache(maxsize=256)
def _found(
    name: str, version: str, num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> tuple[Shapes, Mapping[str, int]]:
    """The shapes of a network of this version, and the widths of its norms."""
    with torch.device("meta"), torch.no_grad():
        backbone = constructor_of(name, image_size)(num_classes, in_channels).eval()
        try:
            images = torch.empty(2, in_channels, *image_size)
            kinds = frozenset({Tap.MAPS, Tap.CLASS_MAPS})
            taps = backbone.taps(images, kinds, frozenset(backbone.further))
        except _REFUSALS as error:
            raise NetworkError(_size_refusal(name, backbone, image_size, error)) from None
    class_maps = taps.class_maps
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
        logits_only=backbone.logits_only,
        class_map=None if class_maps is None else (class_maps.shape[2], class_maps.shape[3]),
        distillation_head=backbone.distillation_head,
    )
    widths = {key: len(gamma) for key, (gamma, _) in affine_parameters(backbone).items()}
    return shapes, widths


def probe_shapes(
    name: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> Shapes:
    """The shapes that `probe` finds."""
    return probe(
        name, num_classes=num_classes, in_channels=in_channels, image_size=image_size
    ).shapes


# Raised by networks for images of the wrong size; by some of the libraries', an AssertionError.
_REFUSALS = (RuntimeError, ValueError, AssertionError)


def _size_refusal(
    name: str, backbone: Backbone, image_size: tuple[int, int], error: Exception
) -> str:
    """Why images of this size cannot be used; the network is on the meta device."""
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
        return f"images are {height}x{width}, but {name} takes only {native_height}x{native_width}"
    if min(image_size) >= high:  # not too small: perhaps not a multiple of something
        return f"images are {height}x{width}, which {name} does not take: {error}"
    return f"images are {height}x{width}, too small for {name}: the smallest are {high}x{high}"
