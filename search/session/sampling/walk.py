"""A walk through the space, whose fields depend on each other: who knows how to choose a value is
asked for one after the other."""

import math
from collections.abc import Callable
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FixedTrial

Answer = Callable[[str, BaseDistribution], Any]
"""Chooses a field's value, by its name and its distribution."""


class Walk(FixedTrial):
    """An Optuna trial for `Space.propose` that belongs to no study.

    Args:
        answer: chooses each value.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer, self._answers = answer, dict[str, Any]()
        super().__init__(self._answers)

    def suggest_float(self, name: str, low: float, high: float, **how: Any) -> float:
        self._answers[name] = self._answer(name, FloatDistribution(low, high, **how))
        return super().suggest_float(name, low, high, **how)

    def suggest_int(self, name: str, low: int, high: int, **how: Any) -> int:
        self._answers[name] = self._answer(name, IntDistribution(low, high, **how))
        return super().suggest_int(name, low, high, **how)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self._answers[name] = self._answer(name, CategoricalDistribution(choices))
        return super().suggest_categorical(name, choices)


def value_at(distribution: BaseDistribution, share: float) -> Any:
    """A value of a field, by where it lies on the field's scale.

    Args:
        distribution: of the field.
        share: from 0 to 1; each option, and each whole number, has an equal part of it, of numbers
            in the logarithm as long as the step to the next one.
    """
    if isinstance(distribution, CategoricalDistribution):
        options = distribution.choices
        return options[min(int(share * len(options)), len(options) - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        low, high = low - 0.5, high + 0.5
    value = on_scale(low, high, share, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        value = math.floor(value + 0.5)
    return min(max(value, distribution.low), distribution.high)


def on_scale(low: float, high: float, share: float, *, log: bool) -> float:
    """The number that lies this share of the way from one end of a scale to the other."""
    return low * (high / low) ** share if log else low + share * (high - low)
