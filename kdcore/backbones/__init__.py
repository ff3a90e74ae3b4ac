"""The networks that can teach or learn: one file a family, each with a table `NETWORKS`."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping

import torch

from kdcore.backbones.backbone import Backbone
from kdcore.suggestion import did_you_mean

__all__ = ["BACKBONES", "Backbone", "build_backbone", "check_backbone"]


def _collect() -> dict[str, Callable[[int, int], Backbone]]:
    networks: dict[str, Callable[[int, int], Backbone]] = {}
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        networks |= getattr(module, "NETWORKS", {})
    return networks


BACKBONES: Mapping[str, Callable[[int, int], Backbone]] = _collect()
"""Name -> constructor from (num_classes, in_channels)."""


def check_backbone(name: str) -> str:
    """Returns the name of a known backbone.

    Raises:
        ValueError: no family has a network of this name.
    """
    if name not in BACKBONES:
        raise ValueError(
            f"unknown backbone {name!r}{did_you_mean(name, BACKBONES)}; "
            f"the catalogue has {', '.join(BACKBONES)}"
        )
    return name


def build_backbone(name: str, *, num_classes: int, in_channels: int, seed: int) -> Backbone:
    """Builds a network with fresh weights; the same seed gives the same weights.

    Args:
        name: a name of `BACKBONES`.
        num_classes: K, >= 2.
        in_channels: channels of the images, >= 1.
        seed: of the initial weights; PyTorch's global random state is left as it was.

    Raises:
        ValueError: no family has a network of this name.
    """
    constructor = BACKBONES[check_backbone(name)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return constructor(num_classes, in_channels)
