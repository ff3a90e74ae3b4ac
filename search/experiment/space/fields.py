"""What is searched: a range of numbers, or a choice."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.experiment.searched import Option, in_words

if TYPE_CHECKING:
    import optuna


Conditions = tuple[tuple[str, tuple[Option, ...]], ...]
"""Names of other fields, and those of their options beside which a field exists."""


@dataclass(frozen=True)
class NumberField:
    """A searched number.

    Args:
        name: like `kd.temperature`.
        low: the smallest value.
        high: the largest value, itself included.
        log: sampled evenly in the logarithm.
        integer: only whole numbers.
        published: the value of the first trial, within the range.
        beside: the field exists only beside these options of others.
    """

    name: str
    low: float
    high: float
    log: bool
    integer: bool
    published: float
    beside: Conditions = ()

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Option:
        if self.integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def takes(self, value: Option) -> bool:
        """Whether a trial may have this value."""
        return value is not None and self.low <= float(value) <= self.high

    def __str__(self) -> str:
        scale = ", logarithmic" if self.log else ""
        return _with_needs(self, f"{self.low:g} to {self.high:g}{scale}")


@dataclass(frozen=True)
class ChoiceField:
    """A searched choice; `published` is the option of the first trial, `layers` tells whether it is
    a choice of layers, and `beside` is as that of a number."""

    name: str
    options: tuple[Option, ...]
    published: Option
    layers: bool = False
    beside: Conditions = ()

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Option:
        return trial.suggest_categorical(self.name, self.options)

    def takes(self, value: Option) -> bool:
        """Whether a trial may have this value."""
        return value in self.options

    def __str__(self) -> str:
        fixed = " (fixed)" if len(self.options) == 1 else ""
        return _with_needs(self, ", ".join(map(in_words, self.options)) + fixed)


SearchedField = NumberField | ChoiceField


def exists(field: SearchedField, point: Mapping[str, Option]) -> bool:
    """Whether a trial has a field beside what it has already."""
    return all(name in point and point[name] in options for name, options in field.beside)


def beside_in_words(field: SearchedField) -> str:
    """What a field needs; empty if nothing."""
    needs = [f"{name} {' or '.join(map(in_words, options))}" for name, options in field.beside]
    return f"with {' and '.join(needs)}" if needs else ""


def _with_needs(field: SearchedField, values: str) -> str:
    needs = beside_in_words(field)
    return f"{values}; {needs}" if needs else values
