"""What is searched: a range of numbers, or a choice."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.experiment.schema import Option

if TYPE_CHECKING:
    import optuna


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
    """

    name: str
    low: float
    high: float
    log: bool
    integer: bool
    published: float

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Option:
        if self.integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def takes(self, value: Option) -> bool:
        """Whether a trial may have this value."""
        return self.low <= float(value) <= self.high

    def __str__(self) -> str:
        scale = ", logarithmic" if self.log else ""
        return f"{self.low:g} to {self.high:g}{scale}"


@dataclass(frozen=True)
class ChoiceField:
    """A searched choice; `published` is the option of the first trial, and `layers` tells whether
    it is a choice of layers."""

    name: str
    options: tuple[Option, ...]
    published: Option
    layers: bool = False

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Option:
        chosen = trial.suggest_categorical(self.name, self.options)
        assert chosen is not None
        return chosen

    def takes(self, value: Option) -> bool:
        """Whether a trial may have this value."""
        return value in self.options

    def __str__(self) -> str:
        fixed = " (fixed)" if len(self.options) == 1 else ""
        return ", ".join(map(str, self.options)) + fixed


SearchedField = NumberField | ChoiceField
