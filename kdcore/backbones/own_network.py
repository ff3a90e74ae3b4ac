"""Networks of plugins: a `Backbone` as those of this folder, or any `nn.Module` that classifies.

An `nn.Module` may declare its taps, as attributes:

- `declared_taps`: of `TapInfo`, first the stem's, then the stages'. The name is the path of the
  submodule whose output is the map. With an activation other than `none` that submodule is the
  activation itself, and what it reads is the map before it. An empty tuple: it has no maps.
- `native_size`: height and width in pixels of the images that it was designed for; 32 by 32 if it
  does not say.

One that does not declare them is traced, as those of timm are, and then takes three channels; grey
images are repeated. The embedding is what the last linear layer with K outputs reads.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.names import versioned
from kdcore.backbones.traced_backbone import TracedBackbone, WholeBackbone, check_colour
from kdcore.backbones.tracing.graph import forbid_writes
from kdcore.backbones.tracing.torch_private import TraceError
from kdcore.backbones.tracing.traced_network import Outputs, TracedNetwork, trace_network
from kdcore.contract.plugin_faults import told_as
from kdcore.contract.taps import Tap, TapInfo
from kdcore.errors import NetworkError

Make = Callable[[int, int], nn.Module]

_NATIVE_SIZE = (32, 32)
_CLASSES = 7  # of twins that are only looked at
_COLOURS = 3
_NO_TAPS = "declare its taps in declared_taps, or () for none"

_checked: set[str] = set()
_traced: dict[str, TracedNetwork] = {}  # both by name and digest


def own_constructor(name: str, make: Make) -> Callable[[int, int], Backbone]:
    """The constructor of a plugin's network, which takes (num_classes, in_channels).

    Raises:
        NetworkError: it cannot be built, or its outputs are not what it declares.
    """
    constructor = partial(_backbone, name, make)
    if (version := versioned(name)) not in _checked:
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("meta"),
            torch.no_grad(),
            told_as(NetworkError, f"the network {name} cannot be used: {{}}".format),
        ):
            check_taps(name, constructor(_CLASSES, _COLOURS).eval())
        _checked.add(version)
    return constructor


def _backbone(name: str, make: Make, num_classes: int, in_channels: int) -> Backbone:
    with torch.device("meta"):
        declares = _built(name, make, num_classes, in_channels)
    if isinstance(declares, Backbone):
        found = _built(name, make, num_classes, in_channels)
        assert isinstance(found, Backbone)
        return found
    if hasattr(declares, "declared_taps"):
        return HookedNetwork(
            name, _built(name, make, num_classes, in_channels), num_classes, in_channels
        )
    check_colour(name, in_channels)
    size = getattr(declares, "native_size", _NATIVE_SIZE)
    traced = _trace(name, make, size)
    network = _built(name, make, num_classes, _COLOURS)
    return TracedBackbone(name, network, traced, size, num_classes, in_channels)


def _built(name: str, make: Make, num_classes: int, in_channels: int) -> nn.Module:
    """A network on the default device; one that computes while it is built, on the processor."""
    try:
        network = make(num_classes, in_channels)
    except (NotImplementedError, RuntimeError):
        if torch.get_default_device().type != "meta":
            raise
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            network = make(num_classes, in_channels).to("meta")
    if not isinstance(network, nn.Module):
        raise NetworkError(
            f"the network {name} gives {network!r:.60}, but must give a torch.nn.Module"
        )
    return network


def _trace(name: str, make: Make, size: tuple[int, int]) -> TracedNetwork:
    """Traces a network once per process and version."""
    if (version := versioned(name)) not in _traced:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
            twin = _built(name, make, _CLASSES, _COLOURS)
            try:
                _traced[version] = trace_network(twin, _CLASSES, size)
            except (TraceError, ValueError, NotImplementedError) as error:
                raise NetworkError(f"{name} cannot be traced: {error}; {_NO_TAPS}") from None
    return _traced[version]


class HookedNetwork(WholeBackbone):
    """A network whose taps are outputs of its submodules.

    Args:
        name: of the network.
        network: which takes images and returns logits.
        num_classes: K.
        in_channels: channels of the images.

    Raises:
        NetworkError: a tap is of no submodule, or there is no linear layer with K outputs.
    """

    def __init__(self, name: str, network: nn.Module, num_classes: int, in_channels: int) -> None:
        super().__init__(name)
        declared: Any = network.declared_taps
        modules = dict(network.named_modules())
        for tap in declared:
            if not isinstance(tap, TapInfo) or tap.name not in modules:
                raise NetworkError(
                    f"{name} declares the tap {tap!r:.80}, but a tap is a TapInfo with the path of "
                    f"one of its submodules, like {list(modules)[-1]}"
                )
        linear = [
            path
            for path, module in modules.items()
            if isinstance(module, nn.Linear) and module.out_features == num_classes
        ]
        if not linear:
            raise NetworkError(
                f"{name} has no linear layer with {num_classes} outputs, whose input would be its "
                f"embedding"
            )
        forbid_writes(network)
        self.network, self._classifier = network, linear[-1]
        self.num_classes, self.in_channels = num_classes, in_channels
        self.stem = declared[0] if declared else None
        self.stages = tuple(declared[1:])
        self.native_size = getattr(network, "native_size", _NATIVE_SIZE)
        self.embedding_width = network.get_submodule(self._classifier).in_features  # type: ignore[assignment]

    def outputs(self, images: Tensor) -> Outputs:
        maps: dict[str, tuple[Tensor, Tensor]] = {}
        read: list[Tensor] = []

        def of(tap: TapInfo) -> Callable[[nn.Module, Any, Any], None]:
            def seen(module: nn.Module, inputs: Any, output: Any) -> None:
                maps[tap.name] = (output if tap.activation == "none" else inputs[0], output)

            return seen

        submodule = self.network.get_submodule
        hooks = [submodule(tap.name).register_forward_hook(of(tap)) for tap in self.declared]
        classifier = submodule(self._classifier)
        hooks.append(
            classifier.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
        )
        try:
            logits = self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        unused = [tap.name for tap in self.declared if tap.name not in maps]
        if unused or not read:
            raise NetworkError(
                f"{self._name} does not run {', '.join(unused) or self._classifier}, which "
                f"it declares as a tap, or needs for its embedding"
            )
        return logits, read[-1], None, None, tuple(maps[tap.name] for tap in self.declared)

    def last_layer(self) -> nn.Linear:
        layer: Any = self.network.get_submodule(self._classifier)
        assert isinstance(layer, nn.Linear)
        return layer

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        *_, maps = self.outputs(images)
        for tap, both in zip(self.declared, maps, strict=True):
            yield tap, *both


def check_taps(name: str, backbone: Backbone) -> None:
    """Compares what a network declares with what it gives for images of its native size.

    Args:
        name: of the network.
        backbone: in evaluation mode, on any device.

    Raises:
        NetworkError: they differ.
    """
    device = next(backbone.parameters()).device
    images = torch.zeros(2, backbone.in_channels, *backbone.native_size, device=device)
    found = backbone.taps(images, frozenset({Tap.MAPS, Tap.PREACTIVATIONS}))
    for what, value, width in (
        ("logits", found.logits, backbone.num_classes),
        ("embedding", found.embedding, backbone.embedding_width),
    ):
        if value.shape != (len(images), width):
            raise NetworkError(
                f"the {what} of {name} have the shape {tuple(value.shape)} for two images, but "
                f"must have {(len(images), width)}"
            )
    for tap in backbone.declared:
        before, after = found.preactivations[tap.name], found.maps[tap.name]
        if after.ndim != 4:
            raise NetworkError(
                f"tap {tap.name!r} of {name} has the shape {tuple(after.shape)}, but a map is "
                f"[B, C, H, W]"
            )
        if after.shape[1] != tap.channels:
            raise NetworkError(
                f"tap {tap.name!r} of {name} declares {tap.channels} channels, but its map has "
                f"{after.shape[1]}"
            )
        if before.shape != after.shape:
            raise NetworkError(
                f"tap {tap.name!r} of {name} declares the activation {tap.activation}, but its "
                f"module reads {tuple(before.shape)} and gives {tuple(after.shape)}; name the "
                f"activation's own module, or declare activation='none'"
            )
        sides = tuple(round(a / b) for a, b in zip(images.shape[2:], after.shape[2:], strict=True))
        if sides != (tap.reduction, tap.reduction):
            raise NetworkError(
                f"tap {tap.name!r} of {name} declares the reduction {tap.reduction}, but its map "
                f"is {after.shape[2]}x{after.shape[3]} for images of {images.shape[2]}x"
                f"{images.shape[3]}"
            )
