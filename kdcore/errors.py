"""What can go wrong by a user's hand, and the ends of the messages that say so.

`KdsearchError` is the ancestor of all of them: whoever catches it catches a mistake or a missing
thing outside, never a defect of this package. Those that a configuration can have are ValueErrors
as well, so that pydantic collects them.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class KdsearchError(Exception):
    """Something outside the package is wrong; the message says what, and the way out."""


class ConfigError(KdsearchError, ValueError):
    """A setting has a value that is not legal here."""


class NetworkError(ConfigError):
    """A network is unknown, or does not fit the images or the method."""


class DataError(ConfigError):
    """A data set is missing or damaged, or has too few images."""


class WeightsError(ConfigError):
    """Weights are missing, damaged, out of reach, or of another network."""


class CheckpointError(KdsearchError, ValueError):
    """A checkpoint is damaged, or belongs to another run."""


class NonFiniteLossError(KdsearchError, ArithmeticError):
    """A loss became NaN or infinite; the message names the first term that did."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `; did you mean 'kd'?`, or a full stop."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
