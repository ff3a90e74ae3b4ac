"""A network that declares no taps, behind those that tracing found.

In state dicts, its own names have the prefix `network.`.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.tracing.graph import forbid_writes
from kdcore.backbones.tracing.traced_network import Outputs, TracedNetwork
from kdcore.contract.taps import Tap, TapInfo, Taps
from kdcore.errors import NetworkError


def check_colour(name: str, in_channels: int) -> None:
    """Refuses images that cannot be repeated for three channels.

    Raises:
        NetworkError: they have neither one nor three.
    """
    if in_channels not in (1, 3):
        raise NetworkError(
            f"in_channels is {in_channels}, but {name} takes images of 1 or 3 channels"
        )


class WholeBackbone(Backbone):
    """A network that is only run as a whole, not split at its maps; a subclass defines `outputs`.

    Args:
        name: of the network.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    @abstractmethod
    def outputs(self, images: Tensor) -> Outputs:
        """Logits, embedding, the map whose mean that is (None if there is none), the logits of
        classes and of distillation (None if there is one head), and the maps before and after the
        activation of each declared tap."""

    def taps(
        self, images: Tensor, needs: frozenset[Tap], named: frozenset[str] = frozenset()
    ) -> Taps:
        logits, embedding, pooled, heads, maps = self.outputs(images)
        distillation_logits = None
        if heads is not None and self.training and Tap.DISTILLATION_LOGITS in needs:
            logits, distillation_logits = heads
        places = list(zip(self.declared, maps, strict=True))
        return Taps(
            logits,
            embedding,
            {tap.name: after for tap, (_, after) in places},
            {tap.name: before for tap, (before, _) in places},
            class_maps=self.class_maps(pooled) if Tap.CLASS_MAPS in needs else None,
            pooled_map=pooled,
            distillation_logits=distillation_logits,
        ).only(needs)

    def embed(self, maps: Sequence[Tensor]) -> NoReturn:
        """Not available, because the rest of the network is not split at its maps."""
        raise NotImplementedError(f"{self._name} gives its embedding only through `taps`")

    def classify(self, embedding: Tensor) -> NoReturn:
        """Not available, like `embed`."""
        raise NotImplementedError(f"{self._name} gives its logits only through `taps`")


class TracedBackbone(WholeBackbone):
    """A network of three channels with its traced taps; grey images are repeated.

    Args:
        name: of the network.
        network: which takes images and returns logits.
        traced: the taps of its architecture.
        native_size: height and width in pixels of the images that it was designed for.
        num_classes: K.
        in_channels: channels of the images, 1 or 3.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        traced: TracedNetwork,
        native_size: tuple[int, int],
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__(name)
        self._traced, self.native_size = traced, native_size
        self.network = network
        forbid_writes(self.network)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.stem = traced.taps[0] if traced.taps else None
        self.stages = traced.taps[1:]
        self.embedding_width = traced.embedding_width
        self.distillation_head = traced.distillation_head
        self.positions = {f"network.{path}": at for path, at in traced.positions.items()}

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        modules: dict[str, Any] = dict(self.network.named_modules())
        return {
            name: tuple(modules[path] for path in paths)
            for name, paths in self._traced.norms.items()
        }

    def last_layer(self) -> nn.Linear | nn.Conv2d | None:
        layer: Any = self.network.get_submodule(self._traced.last_layer)
        return layer if self._traced.last_layer else None

    def _colour(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        maps = self._traced.maps[self.training](self.network, self._colour(images))
        for tap, (before, after) in zip(self._traced.taps, maps, strict=True):
            yield tap, before, after

    def outputs(self, images: Tensor) -> Outputs:
        return self._traced.outputs[self.training](self.network, self._colour(images))
