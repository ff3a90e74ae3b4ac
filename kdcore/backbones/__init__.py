"""The networks that can teach or learn: one file a family, each with a table `NETWORKS`."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping

import torch

from kdcore.backbones.backbone import Backbone
from kdcore.suggestion import did_you_mean
from kdcore.taps import Shapes, Tap

__all__ = ["BACKBONES", "Backbone", "build_backbone", "check_backbone", "probe_shapes"]


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
            f"unknown backbone {name!r}{did_you_mean(name, BACKBONES)} "
            f"The catalogue has {', '.join(BACKBONES)}"
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


def probe_shapes(
    name: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> Shapes:
    """Measures a network's outputs on a probe image, without allocating or computing anything.

    Args:
        name: a name of `BACKBONES`.
        num_classes: K, >= 2.
        in_channels: channels of the images, >= 1.
        image_size: height and width in pixels.

    Raises:
        ValueError: no family has a network of this name, or the image is too small for it.
    """
    with torch.device("meta"), torch.no_grad():
        backbone = BACKBONES[check_backbone(name)](num_classes, in_channels).eval()
        probe = torch.empty(2, in_channels, *image_size)
        try:
            taps = backbone.taps(probe, frozenset({Tap.MAPS}))
        except RuntimeError as error:
            height, width = image_size
            raise ValueError(
                f"images are {height}x{width}, too small for {name}: {error}"
            ) from None
    return Shapes(
        network=name,
        stem=backbone.stem.name,
        stages=tuple(tap.name for tap in backbone.stages),
        maps={
            key: (value.shape[1], value.shape[2], value.shape[3])
            for key, value in taps.maps.items()
        },
        embedding_width=taps.embedding.shape[1],
        num_classes=taps.logits.shape[1],
    )
