"""The rungs of asynchronous successive halving, and who goes on past them.

After Li et al., MLSys 2020, arXiv:1810.05934. The paper pauses a trial at a rung and promotes it
when it is among the best 1/reduction there. The variant that schedulers ship never pauses: who
comes to a rung is compared with those before it, so the first to come goes on for ever, however
poor it is.

Here nothing pauses either, because a paused trial would hand its place to a new one, and on a
machine or two the lowest rung would fill before any trial ended. Instead a trial is judged again
at every epoch, by what it had at the last rung that it passed, among all results that this rung
has by now: a poor first arrival goes on only until better ones have come. Results are compared at
equal epochs, so nobody gains by time. Only the last rung counts, so that a trial that began slowly
and is among the best later on is safe from newcomers that begin quickly.

Who comes to a rung must be among its best 1/reduction, rounded down as in the paper, but the best
two always go on: to be second of three says little. Who has passed it has two places more, because
ranks at a rung are noisy, and a trial that is stopped never comes back. This spends most of what
judging again saves, on purpose: to save more epochs loses the best trial more often.

`python -m tests.benchmarks.replay` compares the rules on recorded curves. The two numbers were
chosen on half of them, so that a search of some forty trials takes no more epochs than the shipped
variant and its best trial survives no less often; the other half, which did not choose them,
confirms it. That is an average. Epochs are saved where many trials run side by side. Where few do,
hardly any are judged again in time, and the two places cost a few epochs and lose less; so they do
with reduction 2, and more so in a search of a dozen trials. To pause and promote trains least and
loses most.
"""

import math
from collections.abc import Iterable
from itertools import accumulate

from search.experiment.schema import Asha

_FEWEST = 2  # places at a rung, however few have come
_SPARE = 2  # further places for who has passed it


class Rungs:
    """What trials had at each rung.

    Args:
        asha: where the rungs are, and how many go on.
        epochs: the budget of a trial.

    Attributes:
        results: by rung's epoch, the best accuracy so far of each trial that came there.
    """

    def __init__(self, asha: Asha, *, epochs: int) -> None:
        self._reduction = asha.reduction
        self.results: dict[int, dict[int, float]] = {}
        rung: float = asha.grace_epochs
        while math.ceil(rung) < epochs:
            self.results[math.ceil(rung)] = {}
            rung *= asha.reduction

    def add(self, trial: int, epoch: int, best_accuracy: float) -> None:
        """Notes what a trial has after an epoch; where that is no rung, or is known, nothing."""
        if epoch in self.results:
            self.results[epoch].setdefault(trial, best_accuracy)

    def add_curve(self, trial: int, accuracies: Iterable[float]) -> None:
        """Notes all epochs of a trial, the first of them first."""
        for epoch, best in enumerate(accumulate(accuracies, max), start=1):
            self.add(trial, epoch, best)

    def keeps(self, trial: int, epoch: int) -> bool:
        """Whether a trial goes on after an epoch: before the first rung always; at a rung while it
        is among the best 1/reduction, rounded down, or the best two; later while it is, at the last
        rung that it passed, among as many and two."""
        passed = [
            rung for rung, results in self.results.items() if rung <= epoch and trial in results
        ]
        if not passed:
            return True
        rung = max(passed)
        results = self.results[rung]
        better = sum(accuracy > results[trial] for accuracy in results.values())
        places = max(_FEWEST, math.floor(len(results) / self._reduction))
        return better < places + (_SPARE if epoch > rung else 0)
