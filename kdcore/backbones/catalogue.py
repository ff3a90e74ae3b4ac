"""Builds networks by name, those of `BACKBONES` and those built on demand."""

import importlib
from collections.abc import Callable

import torch

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.names import (
    FAMILY_OF,
    check_backbone,
    ensemble_members,
    library_name,
    parsed_reused_name,
    pyramid_name,
)
from kdcore.backbones.own_network import own_constructor
from kdcore.backbones.tracing.torch_private import spare_the_compiler
from kdcore.contract import plugged
from kdcore.contract.catalogue import Catalogue
from kdcore.contract.plugin import Kind
from kdcore.errors import NetworkError

Constructor = Callable[[int, int], Backbone]


def _load(name: str) -> Constructor:
    family = importlib.import_module(f"kdcore.backbones.{FAMILY_OF[name]}")
    constructor: Constructor = family.NETWORKS[name]
    return constructor


BACKBONES = Catalogue(FAMILY_OF, _load, Kind.BACKBONES, own_constructor)
"""By name, a constructor that takes (num_classes, in_channels)."""


def constructor_of(name: str, image_size: tuple[int, int] | None = None) -> Constructor:
    """A network's constructor, which takes (num_classes, in_channels).

    Args:
        name: of the network.
        image_size: height and width in pixels of its images, for networks that are built for one
            size, as most transformers; None for that which they were designed for.

    Raises:
        NetworkError: the network is unknown.
    """
    spare_the_compiler()
    if members := ensemble_members(name):
        from kdcore.backbones.ensemble import ensemble_constructor

        return ensemble_constructor([constructor_of(each, image_size) for each in members])
    if (reused := parsed_reused_name(name)) is not None:
        from kdcore.backbones.reused_classifier import reused_constructor

        return reused_constructor(reused, constructor_of(reused.body, image_size))
    check_backbone(name)
    if (pyramid := pyramid_name(name)) is not None:
        from kdcore.backbones.fpn import pyramid_constructor

        return pyramid_constructor(pyramid, constructor_of(pyramid.body, image_size))
    if library_name(name) is not None:
        from kdcore.backbones.library_network import library_constructor

        return library_constructor(name, image_size)
    if name not in BACKBONES:
        plugin = plugged.plugin_of(Kind.BACKBONES, name)
        where = plugin.name if plugin else "a plugin"
        raise NetworkError(f"the network {name!r} is of {where}, whose code is not in use")
    return BACKBONES[name]


def build_backbone(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    seed: int,
    image_size: tuple[int, int] | None = None,
) -> Backbone:
    """Builds a network with fresh weights; the same seed gives the same weights.

    Args:
        name: of the network.
        num_classes: K, >= 2.
        in_channels: channels of the images, >= 1.
        seed: of the initial weights; PyTorch's global random state is not changed.
        image_size: as for `constructor_of`.

    Raises:
        NetworkError: the network is unknown, or does not take images with these channels, or of
            this size.
    """
    constructor = constructor_of(name, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return constructor(num_classes, in_channels)
