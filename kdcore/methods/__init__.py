"""The catalogue of methods. Each file defines the method of the same name; plugins add theirs."""

import importlib
import pkgutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kdcore.contract import plugged
from kdcore.contract.catalogue import Catalogue
from kdcore.contract.plugin import Kind
from kdcore.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from kdcore.contract.method import Method

__all__ = ["CATALOGUE", "check_method", "check_mixing"]


def _load(name: str) -> "type[Method]":
    from kdcore.contract.method import Method

    module = importlib.import_module(f"{__name__}.{name}")
    (method,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    )
    return method


CATALOGUE = Catalogue((found.name for found in pkgutil.iter_modules(__path__)), _load, Kind.METHODS)
"""Methods by name, in alphabetical order, and then those of plugins."""


def check_method(name: str) -> str:
    """Returns the name of a method if it is known.

    Raises:
        ConfigError: the method is unknown.
    """
    if name not in CATALOGUE and not plugged.is_plugged(Kind.METHODS, name):
        raise ConfigError(
            f"unknown method {name!r}{did_you_mean(name, CATALOGUE)} "
            f"The catalogue has {', '.join(CATALOGUE)}"
        )
    return name


def check_mixing(methods: Iterable[str]) -> None:
    """Checks that these methods can be trained on images that are mixed of two, as second views
    never are; those of a plugin whose code is not run are left to when it is.

    Raises:
        ConfigError: one of them cannot.
    """
    from kdcore.contract.taps import Tap

    for name in methods:
        if name not in CATALOGUE:
            continue
        found = CATALOGUE[name]
        if found.mixing == "refused" or Tap.STRONG_LOGITS in found.needs:
            raise ConfigError(
                f"objective has {name}, but data.augmentation mixes images, of which {name} cannot "
                f"learn; leave one of them out"
            )
