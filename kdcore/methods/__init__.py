"""The catalogue: one file, one method; the file's name is the method's name."""

import importlib
import pkgutil
from collections.abc import Mapping

from kdcore.method import Method
from kdcore.suggestion import did_you_mean

__all__ = ["CATALOGUE", "check_method"]


def _collect() -> dict[str, type[Method]]:
    catalogue: dict[str, type[Method]] = {}
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        (catalogue[found.name],) = (
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Method)
            and value.__module__ == module.__name__
        )
    return catalogue


CATALOGUE: Mapping[str, type[Method]] = _collect()
"""Name -> method, in alphabetical order."""


def check_method(name: str) -> str:
    """Returns the name of a known method.

    Raises:
        ValueError: the catalogue has no such method.
    """
    if name not in CATALOGUE:
        raise ValueError(
            f"unknown method {name!r}{did_you_mean(name, CATALOGUE)} "
            f"The catalogue has {', '.join(CATALOGUE)}"
        )
    return name
