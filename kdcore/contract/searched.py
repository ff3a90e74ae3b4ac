"""Marks a search reads from the annotation of a parameter.

One line has three facts: pydantic's `Field` says which values are legal, a mark of this file which
ones a search tries, and the default is the published value.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A range to search, both ends included.

    Args:
        low: the smallest value.
        high: the largest value; greater than `low`.
        log: sample log-uniformly; `low` must then be > 0.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"span is [{self.low}, {self.high}], but low must be < high")
        if self.log and self.low <= 0:
            raise ValueError(f"span's low is {self.low}, but a logarithmic span needs low > 0")


@dataclass(frozen=True)
class Choice:
    """Alternatives to search."""

    options: tuple[bool | int | float | str, ...]

    def __post_init__(self) -> None:
        if len(self.options) < 2 or len(set(self.options)) < len(self.options):
            raise ValueError(f"choice is {self.options}, but needs two or more different options")


@dataclass(frozen=True)
class LayerChoice:
    """Marks the field that names the maps to compare; the networks decide its options."""
