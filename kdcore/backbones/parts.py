"""The parts of a network: which parameters belong to stem, stages and head.

They are found on the meta device, so that no network has to declare them. The head is what depends
on the number of classes; a parameter belongs to the first stage whose map depends on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import constructor_of
from kdcore.backbones.names import versioned
from kdcore.contract.taps import Tap

# Any will do that differ: shapes that change with them are the head's.
_CLASSES = (7, 11)
_CHANNELS = 3


@dataclass(frozen=True)
class Parts:
    """The parts of a network.

    Args:
        head: names of the classifier's parameters, and those of auxiliary classifiers.
        stage_of: by name of every other parameter: 0 for the stem, and the stages from 1. What
            lies between the last map and the head belongs to the last stage.
        stem: name of the stem's map; empty if the network has no maps.
        stages: names of the stages' maps.
    """

    head: frozenset[str]
    stage_of: Mapping[str, int]
    stem: str
    stages: tuple[str, ...]


def _on_meta(network: str, num_classes: int) -> Backbone:
    with torch.device("meta"):
        return constructor_of(network)(num_classes, _CHANNELS).eval()


def head_of(network: str) -> frozenset[str]:
    """Names of the tensors of a network's classifier: those that depend on the number of classes.

    Raises:
        NetworkError: the network is unknown.
    """
    return _head_of(network, versioned(network))


@cache
def _head_of(network: str, version: str) -> frozenset[str]:
    few, many = (_on_meta(network, classes).state_dict() for classes in _CLASSES)
    return frozenset(name for name in few if few[name].shape != many[name].shape)


def parts_of(network: str) -> Parts:
    """The parts of a network.

    Raises:
        NetworkError: the network is unknown.
    """
    return _parts_of(network, versioned(network))


@cache
def _parts_of(network: str, version: str) -> Parts:
    backbone = _on_meta(network, _CLASSES[0])
    parameters = dict(backbone.named_parameters())
    head = head_of(network)
    head |= {name for name in parameters if name.startswith("auxiliary.")}
    stage_of: dict[str, int] = {}
    if backbone.declared:
        images = torch.empty(2, _CHANNELS, *backbone.native_size, device="meta")
        with torch.enable_grad():
            maps = backbone.taps(images, frozenset({Tap.MAPS})).maps
        # But for a classifier that is another network's.
        trained = {name: each for name, each in parameters.items() if each.requires_grad}
        for number, tap in enumerate(backbone.declared):
            gradients = torch.autograd.grad(
                maps[tap.name].sum(),
                list(trained.values()),
                retain_graph=True,
                allow_unused=True,
            )
            for name, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    stage_of.setdefault(name, number)
    last = len(backbone.stages)
    return Parts(
        head,
        {name: stage_of.get(name, last) for name in parameters if name not in head},
        backbone.stem.name if backbone.stem else "",
        tuple(tap.name for tap in backbone.stages),
    )
