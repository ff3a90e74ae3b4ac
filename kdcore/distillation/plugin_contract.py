"""What a plugin's methods, networks and data sets keep to; each breach in words.

`kdsearch check-plugin` asks it of a file, and `kdcore.distillation.pytest_plugin` as tests.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.own_network import check_taps
from kdcore.contract import plugged
from kdcore.contract.plugin import Kind, Plugin
from kdcore.contract.plugin_faults import ending_hangs, fault_in_plugin
from kdcore.contract.taps import Tap
from kdcore.data.config import DataConfig
from kdcore.data.image_data import open_data
from kdcore.distillation.method_contract import breaches
from kdcore.errors import ConfigError

_CLASSES = 10
_KINDS = frozenset({Tap.MAPS, Tap.PREACTIVATIONS})


def breaches_of(plugin: Plugin, workspace: Path, root: Path | None = None) -> list[str]:
    """What a plugin breaks, each in a sentence; none if it keeps its contract.

    Args:
        plugin: whose code is put in use.
        workspace: for the tables of its data sets.
        root: of the data of its data sets.

    Raises:
        PluginError: its code does not come back.
    """
    plugged.use([plugin])
    return [
        breach
        for kind in Kind
        for name in plugin.names(kind)
        for breach in breaches_in(kind, name, workspace, root)
    ]


@ending_hangs()
def breaches_in(kind: Kind, name: str, workspace: Path, root: Path | None = None) -> list[str]:
    """As `breaches_of`, of one thing that a plugin adds which is in use."""
    if kind is Kind.METHODS:
        return breaches(name)
    if kind is Kind.BACKBONES:
        return _told(name, _network(name))
    return _told(name, _data(name, workspace, root))


def _told(name: str, check: Iterator[str]) -> list[str]:
    """What a check finds; what it raises is one more breach."""
    try:
        return [f"{name}: {each}" for each in check]
    except ConfigError as error:
        return [str(error) if name in str(error) else f"{name}: {error}"]
    except (Exception, SystemExit) as error:
        if fault := fault_in_plugin(error):
            return [f"{name}: {fault}"]
        return [f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"]


def _network(name: str) -> Iterator[str]:
    for channels in (3, 1):
        network = build_backbone(name, num_classes=_CLASSES, in_channels=channels, seed=0)
        again = build_backbone(name, num_classes=_CLASSES, in_channels=channels, seed=0)
        for key, value in network.state_dict().items():
            if not torch.equal(value, again.state_dict()[key]):
                yield f"the same seed gives other weights ({key}); draw them with torch alone"
                return
        check_taps(name, network.eval())
        yield from _behaves(network, again, channels)


def _behaves(network: Backbone, again: Backbone, channels: int) -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, channels, *network.native_size, generator=generator)
    with torch.no_grad():
        taps = network.eval().taps(images, _KINDS)
        first = network.taps(images[:1], _KINDS)
    if not torch.allclose(taps.logits[:1], first.logits, rtol=1e-3, atol=1e-4):
        yield "in evaluation, an image's logits depend on the other images of its batch"
    if not torch.equal(network(images), taps.logits):
        yield "in evaluation, the same images give other logits"
    for tap in network.declared:
        apply = (lambda x: x) if tap.activation == "none" else getattr(functional, tap.activation)
        if not torch.allclose(apply(taps.preactivations[tap.name]), taps.maps[tap.name]):
            yield (
                f"the map of the tap {tap.name!r} is not {tap.activation} of the one before the "
                f"activation, as it declares"
            )
    torch.autograd.backward(network.train()(images).square().mean())
    still = [key for key, value in network.named_parameters() if value.grad is None]
    if still:
        yield f"no gradient reaches {', '.join(still[:3])}{' and others' * (len(still) > 3)}"
    again.load_state_dict(network.state_dict())
    if not torch.equal(again.eval()(images), network.eval()(images)):
        yield "with the same state dict it gives other logits: what it remembers must be buffers"


def _data(name: str, workspace: Path, root: Path | None) -> Iterator[str]:
    config = DataConfig.model_validate({"name": name, "root": root})
    first, again = open_data(config, workspace), open_data(config, workspace)
    if first.digest != again.digest:
        yield "opened twice, its images differ; draw them with a fixed seed"
    for split, words in ((first.train, "training"), (first.heldout, "held out")):
        (images, *_) = split.batches(2)
        if images.dtype != torch.uint8 or images.shape[1:] != (
            first.in_channels,
            *first.image_size,
        ):
            yield f"images for {words} are {images.dtype} of {tuple(images.shape[1:])}"
    missing = set(range(first.num_classes)) - set(first.train.labels.tolist())
    if missing:
        yield f"no training image is of class {min(missing)}"
