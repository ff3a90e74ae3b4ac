"""A part of many trials to learn from."""

import math
import random
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

_KEPT_SHARE = 4 / 5  # of the largest number
_BEST_SHARE = 1 / 4  # of those kept; Optuna fits the good density to at most 25 trials


def thinned(
    trials: Sequence[FrozenTrial], most: int, chance: random.Random
) -> Sequence[FrozenTrial]:
    """All trials, or of more than so many a part: the best and a sample of the others, in their
    order, by which Optuna weighs them: the older, the less."""
    if len(trials) <= most:
        return trials
    size = round(most * _KEPT_SHARE)
    order = sorted(range(len(trials)), key=lambda index: _rank(trials[index]))
    best = round(size * _BEST_SHARE)
    kept = order[:best] + chance.sample(order[best:], size - best)
    return [trials[index] for index in sorted(kept)]


def _rank(trial: FrozenTrial) -> tuple[float, float]:
    """Sorts trials as Optuna does, the best first: those that were pruned after all others, and
    among them the one that ran longest first."""
    complete = trial.state is TrialState.COMPLETE
    return (-math.inf if complete else -(trial.last_step or 0), -(trial.value or 0.0))
