"""Errors that a user can cause and fix. A defect of this package is never a KdsearchError.

ConfigError and its subclasses are ValueErrors too, so that pydantic collects them.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class KdsearchError(Exception):
    """Base of all errors that a user can fix; the message says how."""


class ConfigError(KdsearchError, ValueError):
    """An illegal value in a configuration."""


class NetworkError(ConfigError):
    """A network is unknown, or does not fit the images or the method."""


class DataError(ConfigError):
    """A data set is missing or damaged, or has too few images."""


class WeightsError(ConfigError):
    """Weights are missing, damaged, cannot be downloaded, or belong to another network."""


class PluginError(ConfigError):
    """A user's own code is missing, cannot be imported, or breaks its contract."""


class CheckpointError(KdsearchError, ValueError):
    """A checkpoint is damaged, or belongs to another run."""


class NonFiniteLossError(KdsearchError, ArithmeticError):
    """A loss became NaN or infinite; the message names the term."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `; did you mean 'kd'?` or `.`."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
