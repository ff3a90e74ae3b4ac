"""What torchvision and timm have: their classification networks, and published weights of them."""

import inspect
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from kdcore.backbones.foreign_weights import read_weights
from kdcore.backbones.names import library_name
from kdcore.backbones.normalization import Normalization
from kdcore.backbones.tracing.torch_private import TraceError
from kdcore.backbones.tracing.traced_network import Outputs, TracedNetwork, trace_network
from kdcore.errors import NetworkError, WeightsError, did_you_mean


@dataclass(frozen=True)
class Published:
    """Weights that a library publishes.

    Args:
        name: of these weights, never an alias.
        source: URL of the file or repository.
        num_classes: K.
        normalization: of the images that they were trained on, three channels.
        fetch: loads them, from the library's cache if they are there.
        licence: as the library states it; empty where it states none.
        image_size: of the images that they are for, which counts where a network takes one size.
    """

    name: str
    source: str
    num_classes: int
    normalization: Normalization
    fetch: Callable[[], Mapping[str, Tensor]]
    licence: str = ""
    image_size: tuple[int, int] | None = None


class Library(Protocol):
    """A package of networks."""

    def names(self) -> Sequence[str]:
        """Names of its classification networks.

        Raises:
            NetworkError: it is not installed.
        """

    def build(
        self, name: str, num_classes: int, image_size: tuple[int, int] | None = None
    ) -> nn.Module:
        """A network with fresh weights for images of three channels.

        Raises:
            TypeError: it cannot be built for images of a given size.
        """

    def takes_one_size(self, name: str) -> bool:
        """Whether a network may take images of one size only."""

    def native_size(self, name: str, network: nn.Module) -> tuple[int, int]:
        """Height and width in pixels of the images that the network was designed for."""

    def trace(
        self, network: nn.Module, num_classes: int, image_size: tuple[int, int]
    ) -> TracedNetwork:
        """Traces a network to find its taps."""

    def weights(self, name: str) -> Sequence[str]:
        """Names and aliases of the published weights of a network."""

    def published(self, name: str, weights: str) -> Published:
        """Published weights, which are not fetched yet."""

    def normalization(self, name: str) -> Normalization:
        """The normalisation of the network's default weights."""


class _Torchvision:
    def names(self) -> Sequence[str]:
        from torchvision import models

        names: list[str] = models.list_models(module=models)
        return names

    def build(
        self, name: str, num_classes: int, image_size: tuple[int, int] | None = None
    ) -> nn.Module:
        from torchvision.models import get_model_builder

        # Without init_weights, networks that have it warn that its default will change.
        options: dict[str, bool | int] = {"aux_logits": False, "init_weights": True}
        known = self._options(name)
        options = {option: value for option, value in options.items() if option in known}
        if image_size is not None:
            height, width = image_size
            if height != width:
                raise ValueError("its images must be square")
            options["image_size"] = height
        network: nn.Module = get_model_builder(name)(num_classes=num_classes, **options)
        return network

    def takes_one_size(self, name: str) -> bool:
        return "image_size" in self._options(name)

    def _options(self, name: str) -> Mapping[str, inspect.Parameter]:
        from torchvision.models import get_model_builder

        network = typing.get_type_hints(get_model_builder(name))["return"]
        return inspect.signature(network).parameters

    def native_size(self, name: str, network: nn.Module) -> tuple[int, int]:
        from torchvision.models import get_model_weights

        side = getattr(network, "image_size", None)  # of networks for a single image size
        if side is None:
            (side,) = get_model_weights(name).DEFAULT.transforms().crop_size
        return side, side

    def trace(
        self, network: nn.Module, num_classes: int, image_size: tuple[int, int]
    ) -> TracedNetwork:
        return trace_network(network, num_classes, image_size)

    def weights(self, name: str) -> Sequence[str]:
        from torchvision.models import get_model_weights

        # Some weights are of a body without classifier.
        members = get_model_weights(name).__members__
        return [weights for weights in members if members[weights].meta["categories"]]

    def published(self, name: str, weights: str) -> Published:
        from torchvision.models import get_model_weights

        chosen = get_model_weights(name)[weights]
        preset = chosen.transforms()
        normalization = Normalization(tuple(preset.mean), tuple(preset.std))
        if "transform_input" in self._options(name):
            # With transform_input, which we do not set, the network converts images from ImageNet's
            # normalisation to that of 0.5, which the weights expect.
            normalization = Normalization((0.5,) * 3, (0.5,) * 3)
        file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(chosen.url).path).name)

        def fetch() -> Mapping[str, Tensor]:
            if not file.is_file():
                try:
                    chosen.get_state_dict(
                        progress=False, check_hash=True, map_location="cpu", weights_only=True
                    )
                except (OSError, RuntimeError) as error:
                    raise WeightsError(
                        f"weights {weights} of torchvision/{name} could not be fetched from "
                        f"{chosen.url}: {error}. Without internet access, put the file at {file}"
                    ) from None
            return read_weights(file)

        side = chosen.meta["min_size"] if self.takes_one_size(name) else None
        return Published(
            chosen.name,
            chosen.url,
            len(chosen.meta["categories"]),
            normalization,
            fetch,
            image_size=side,
        )

    def normalization(self, name: str) -> Normalization:
        return self.published(name, "DEFAULT").normalization


class _Timm:
    def names(self) -> Sequence[str]:
        try:
            import timm
        except ImportError:
            raise NetworkError("timm/... needs timm: pip install 'kdsearch[timm]'") from None
        names: list[str] = timm.list_models()
        return names

    def build(
        self, name: str, num_classes: int, image_size: tuple[int, int] | None = None
    ) -> nn.Module:
        import timm

        sized = {} if image_size is None else {"img_size": image_size}
        network: nn.Module = timm.create_model(name, num_classes=num_classes, **sized)
        return network

    def takes_one_size(self, name: str) -> bool:
        import timm

        fixed: bool = timm.get_pretrained_cfg(name).fixed_input_size
        return fixed

    def native_size(self, name: str, network: nn.Module) -> tuple[int, int]:
        settings: Any = network.pretrained_cfg
        _, height, width = settings["input_size"]
        return height, width

    def trace(
        self, network: nn.Module, num_classes: int, image_size: tuple[int, int]
    ) -> TracedNetwork:
        from timm.models import get_notrace_functions, get_notrace_modules

        # Norms that include an activation are traced into: a tap may lie between the two.
        modules = [m for m in get_notrace_modules() if not issubclass(m, nn.BatchNorm2d)]
        try:
            return trace_network(
                network,
                num_classes,
                image_size,
                leaf_modules=tuple(modules),
                leaf_functions=tuple(get_notrace_functions()),
            )
        except TraceError:
            return self._without_maps(network, image_size)

    def _without_maps(self, network: nn.Module, image_size: tuple[int, int]) -> TracedNetwork:
        """For transformers whose position embeddings depend on the image size, untraceably."""

        def outputs(network: Any, images: Tensor) -> Outputs:
            features = network.forward_features(images)
            embedding = network.forward_head(features, pre_logits=True)
            return network.get_classifier()(embedding), embedding, None, None, ()

        _, embedding, *_ = outputs(network.eval(), torch.empty(1, 3, *image_size))
        built: Any = network
        head = built.get_classifier()
        (path,) = (name for name, module in network.named_modules() if module is head)
        return TracedNetwork(
            *((), {}, embedding.shape[1], path), (outputs,) * 2, (lambda *_: (),) * 2
        )

    def weights(self, name: str) -> Sequence[str]:
        import timm

        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
        return ["pretrained", "DEFAULT", *tags] if tags else []

    def published(self, name: str, weights: str) -> Published:
        import timm

        full = name if weights in ("pretrained", "DEFAULT") else f"{name}.{weights}"
        settings = timm.get_pretrained_cfg(full)
        hub = settings.hf_hub_id
        source = f"https://huggingface.co/{hub}" if hub else settings.url

        def fetch() -> Mapping[str, Tensor]:
            # Whether or not timm asks for it.
            forced = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
            former = os.environ.get(forced)
            os.environ[forced] = "1"
            try:
                network: nn.Module = timm.create_model(full, pretrained=True)
                return network.state_dict()
            except Exception as error:  # of the hub, of its client, of the file
                raise WeightsError(
                    f"weights {weights} of timm/{name} could not be fetched from {source}: {error} "
                    "Without internet access, download the file elsewhere and set "
                    "weights: /path/to/model.safetensors"
                ) from None
            finally:
                if former is None:
                    del os.environ[forced]
                else:
                    os.environ[forced] = former

        return Published(
            settings.tag,
            source,
            settings.num_classes,
            Normalization(tuple(settings.mean), tuple(settings.std)),
            fetch,
            settings.license or "",
            settings.input_size[1:],
        )

    def normalization(self, name: str) -> Normalization:
        import timm

        settings = timm.get_pretrained_cfg(name)
        return Normalization(tuple(settings.mean), tuple(settings.std))


LIBRARIES: Mapping[str, Library] = {"torchvision": _Torchvision(), "timm": _Timm()}


def library_of(name: str) -> tuple[Library, str] | None:
    """The library and the network of a name like `timm/resnet50`; None for other names."""
    found = library_name(name)
    return (LIBRARIES[found[0]], found[1]) if found else None


def published_weights(name: str, weights: str) -> Published:
    """Looks up published weights of a library's network.

    Raises:
        WeightsError: there are none of this name.
    """
    found = _known(name)
    names = found[0].weights(found[1]) if found else ()
    if found is None or weights not in names:
        raise WeightsError(
            f"weights is {weights!r}, but {name} has no such weights"
            f"{did_you_mean(weights, names)} There are {', '.join(names) or 'none'}; for a file, "
            "give its folder or its suffix"
        )
    library, network = found
    return library.published(network, weights)


def usual_normalization(name: str) -> Normalization | None:
    """The normalisation of a library's network; None for other networks."""
    found = _known(name)
    return found[0].normalization(found[1]) if found else None


def _known(name: str) -> tuple[Library, str] | None:
    found = library_of(name)
    return found if found and found[1] in found[0].names() else None
