"""Stochastic depth in the networks of torchvision and timm: where they have it, at which rates."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from kdcore.backbones.drop_path import DropPath


def library_rates(
    library: str, name: str, num_classes: int, rate: float, plain: Callable[[], nn.Module]
) -> Mapping[str, float]:
    """The rates that the library gives its modules of stochastic depth, by their paths.

    Args:
        library: `torchvision` or `timm`.
        name: of the network in the library.
        num_classes: K.
        rate: as its option `stochastic_depth_prob` or `drop_path_rate`.
        plain: builds the network without that option.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if library == "timm":
            return _of_timm(name, num_classes, rate)
        return _of_torchvision(name, num_classes, rate, plain)


def _of_timm(name: str, num_classes: int, rate: float) -> Mapping[str, float]:
    import timm
    from timm.layers import DropPath as TimmsDropPath

    try:
        network = timm.create_model(name, num_classes=num_classes, drop_path_rate=rate)
    except TypeError:  # it does not have the option
        return {}
    modules = network.named_modules()
    return {path: each.drop_prob for path, each in modules if isinstance(each, TimmsDropPath)}


def _of_torchvision(
    name: str, num_classes: int, rate: float, plain: Callable[[], nn.Module]
) -> Mapping[str, float]:
    from torchvision.models import get_model_builder
    from torchvision.ops import StochasticDepth

    def rates(build: Callable[..., Any]) -> dict[str, float]:
        modules = build().named_modules()
        return {path: each.p for path, each in modules if isinstance(each, StochasticDepth)}

    build = partial(get_model_builder(name), num_classes=num_classes)
    try:
        return rates(partial(build, stochastic_depth_prob=rate))
    except TypeError:  # it has none, or like Swin its own rate at the end, and others in proportion
        found = rates(plain)
        largest = max(found.values(), default=0.0)
        return {path: each * rate / largest for path, each in found.items()}


def put_drop_paths(network: nn.Module, rates: Mapping[str, float]) -> None:
    """Puts stochastic depth at these paths, in the place of the library's or of an identity, and
    identities in the place of what was put elsewhere before."""
    before = [path for path, module in network.named_modules() if isinstance(module, DropPath)]
    made: dict[str, nn.Module] = {path: nn.Identity() for path in before}
    for path, rate in rates.items():
        made[path] = DropPath(rate)
    for path, module in made.items():
        parent, _, name = path.rpartition(".")
        # Not `set_submodule`: some blocks have None in its place.
        setattr(network.get_submodule(parent), name, module.train(network.training))
