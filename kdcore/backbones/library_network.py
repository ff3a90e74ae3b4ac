"""The networks of torchvision and timm, as `torchvision/NAME` and `timm/NAME`.

The library builds and initialises the network; `tracing` finds its taps. In state dicts, the
library's names have the prefix `network.`. Networks that take images of one size, as most vision
transformers, are built for that of the data where the library can.

Grey images are repeated for the three channels. Auxiliary classifiers are left out.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.drop_path import check_drop_path
from kdcore.backbones.libraries import library_of
from kdcore.backbones.library_drop_path import library_rates, put_drop_paths
from kdcore.backbones.names import library_name
from kdcore.backbones.traced_backbone import TracedBackbone, check_colour
from kdcore.backbones.tracing.torch_private import TraceError
from kdcore.backbones.tracing.traced_network import TracedNetwork
from kdcore.errors import NetworkError, did_you_mean

_TWINS_CLASSES = 7  # arbitrary: taps do not depend on it


def library_constructor(
    name: str, image_size: tuple[int, int] | None = None
) -> Callable[[int, int], Backbone]:
    """The constructor of a library's network, which takes (num_classes, in_channels).

    Args:
        name: like `timm/resnet50`.
        image_size: see `constructor_of`.

    Raises:
        NetworkError: the library has no such network, or is not installed, or builds it for some
            sizes of images, but not for this one.
    """
    found = library_of(name)
    assert found is not None
    library, network = found
    names = library.names()
    if network not in names:
        package = name.partition("/")[0]
        known = [f"{package}/{other}" for other in names]
        raise NetworkError(
            f"unknown backbone {name!r}{did_you_mean(name, known)} "
            f"{package} has {len(known)} networks, {known[0]} to {known[-1]}"
        )
    built_for = image_size if image_size and _is_built_for(name, image_size) else None
    return partial(LibraryNetwork, name, built_for)


class LibraryNetwork(TracedBackbone):
    """A network of a library.

    Args:
        name: like `timm/resnet50`.
        built_for: height and width of the images that it is built for; None: as the library's own.
        num_classes: K.
        in_channels: channels of the images, 1 or 3.

    Raises:
        NetworkError: the images have another number of channels.
    """

    def __init__(
        self, name: str, built_for: tuple[int, int] | None, num_classes: int, in_channels: int
    ) -> None:
        check_colour(name, in_channels)
        traced, native_size = _traced(name, built_for)
        network = _built(name, num_classes, built_for)
        super().__init__(name, network, traced, native_size, num_classes, in_channels)
        self._built_for = built_for

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth where the library has it, with its schedule of rates.

        Args:
            rate: as the library's option, `stochastic_depth_prob` or `drop_path_rate`.

        Raises:
            NetworkError: the rate is above 0, but the network has none, or other taps with it.
        """
        rates = _drop_path_rates(self._name, self.num_classes, rate)
        check_drop_path(rate, len(rates))
        if rates:
            traced, _ = _traced(self._name, self._built_for, dropping=True)
            if (traced.taps, traced.norms) != (self._traced.taps, self._traced.norms):
                raise NetworkError("with stochastic depth its maps are found elsewhere")
            self._traced = traced
        put_drop_paths(self.network, rates)


def _built(name: str, num_classes: int, built_for: tuple[int, int] | None = None) -> nn.Module:
    found = library_of(name)
    assert found is not None
    library, network = found
    try:
        return library.build(network, num_classes, built_for)
    except NotImplementedError:  # some networks compute widths with tensors, not possible on meta
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return library.build(network, num_classes, built_for).to("meta")


@cache
def _is_built_for(name: str, image_size: tuple[int, int]) -> bool:
    """Whether a network has to be built for images of this size, and can be.

    Raises:
        NetworkError: it is built for other sizes, but not for this one.
    """
    found = library_of(name)
    assert found is not None
    library, network = found
    if not library.takes_one_size(network):
        return False
    images = torch.empty(2, 3, *image_size, device="meta")
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        try:
            _built(name, _TWINS_CLASSES).eval()(images)
        except Exception:  # whatever an assertion or a shape of the library's gives
            pass
        else:
            return False
        try:
            _built(name, _TWINS_CLASSES, image_size).eval()(images)
        except TypeError:  # it has no such option
            return False
        except Exception as error:
            height, width = image_size
            raise NetworkError(
                f"images are {height}x{width}, which {name} does not take: {error}"
            ) from None
    return True


def _drop_path_rates(name: str, num_classes: int, rate: float) -> Mapping[str, float]:
    found = library_name(name)
    assert found is not None
    return library_rates(*found, num_classes, rate, partial(_built, name, num_classes))


@cache
def _traced(
    name: str, built_for: tuple[int, int] | None, *, dropping: bool = False
) -> tuple[TracedNetwork, tuple[int, int]]:
    """Traces a network once per process and size, once more with stochastic depth; returns the size
    of the images that it was designed or built for, too."""
    found = library_of(name)
    assert found is not None
    library, network = found
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        twin = _built(name, _TWINS_CLASSES, built_for)
        if dropping:  # at an arbitrary rate; modules keep their own
            put_drop_paths(twin, _drop_path_rates(name, _TWINS_CLASSES, 0.1))
        size = built_for or library.native_size(network, twin)
        try:
            return library.trace(twin, _TWINS_CLASSES, size), size
        except (TraceError, ValueError, NotImplementedError) as error:
            raise NetworkError(f"{name} cannot be used: {error}") from None
