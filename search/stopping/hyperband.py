"""Hyperband: several brackets of successive halving side by side.

After Li et al., JMLR 2018, arXiv:1603.06560. How early trials may be compared is not known before:
too early, and those that begin slowly are lost; too late, and the others cost too much. So there is
a bracket for each answer, from the grace epochs on, each with its first rung a factor `reduction`
later than the one before; the last has none, and stops no trial. As in the paper, brackets differ
in their number of trials, so that each trains about as many epochs. A trial is compared only with
those of its bracket.

Two things differ. The paper runs one bracket after the other, and all trials of a rung at once;
here trials take their turns in all brackets, and rungs are asynchronous, as in Li et al., MLSys
2020, section 3.3: by the rule of `rungs.py`. And rungs are counted from the first epoch up, not
from the last one down.
"""

import math

from search.experiment.search_config import Asha, Hyperband
from search.record.decisions import Verdict
from search.stopping.rule import StoppingRule
from search.stopping.rungs import Rungs, rung_epochs


class Brackets(StoppingRule):
    """Brackets of rungs; a trial's follows from its number.

    Args:
        hyperband: the settings.
        epochs: the epochs of a whole trial, without those of preparatory stages on top.

    Attributes:
        brackets: the rungs of each; that with the first rung comes first.
    """

    def __init__(self, hyperband: Hyperband, *, epochs: int) -> None:
        grace, reduction = hyperband.first_epoch(epochs), hyperband.reduction
        # The paper's s_max: how often the factor fits between the grace epochs and the last one.
        last = 0
        while grace * reduction ** (last + 1) <= epochs:
            last += 1
        rungs = rung_epochs(grace, reduction, epochs)[:last]
        asha = Asha(grace_epochs=grace, reduction=reduction)
        self.brackets = [Rungs(asha, epochs=epochs, at=rungs[first:]) for first in range(last + 1)]
        self._turns = _turns(
            [
                math.ceil((last + 1) / (last - first + 1) * reduction ** (last - first))
                for first in range(last + 1)
            ]
        )

    def bracket_of(self, trial: int) -> int:
        """The place of a trial's bracket, from 0."""
        return self._turns[trial % len(self._turns)]

    def add(self, trial: int, epoch: int, best_accuracy: float, accuracy: float) -> None:
        """See `StoppingRule`; it is recorded at the rungs of the trial's bracket."""
        self.brackets[self.bracket_of(trial)].add(trial, epoch, best_accuracy, accuracy)

    def judge(self, trial: int, epoch: int) -> Verdict | None:
        """See `StoppingRule`; the trial is compared within its bracket."""
        return self.brackets[self.bracket_of(trial)].judge(trial, epoch)


def _turns(sizes: list[int]) -> list[int]:
    """A round of turns in which each bracket has as many as its size, as evenly as it can be."""
    had, whole = [0] * len(sizes), sum(sizes)
    turns = []
    for turn in range(1, whole + 1):
        lag = [size * turn - whole * each for size, each in zip(sizes, had, strict=True)]
        bracket = lag.index(max(lag))
        had[bracket] += 1
        turns.append(bracket)
    return turns
