"""The rungs of asynchronous successive halving, and which trials continue past them.

After Li et al., MLSys 2020, arXiv:1810.05934. The paper pauses a trial at a rung and promotes it
once it is among the best 1/reduction there. The variant that Ray Tune and others ship never pauses:
a trial is compared with those that reached the rung before it, so the first one always continues,
however poor it is.

Nothing pauses here either, because a paused trial would give its slot to a new one, and on a
machine or two the lowest rung would fill before any trial finished. Instead, a trial is judged
again after every epoch: by its result at the last rung it passed, among all results that this rung
has by now. A poor first trial continues only until better ones arrive. Results are compared at
equal epochs, so a head start gives no advantage. Only the last rung counts, so a trial that starts
slowly and leads later is safe from newcomers that start quickly.

A trial that reaches a rung must be among its best 1/reduction, rounded down as in the paper, or
among its best two, since being second of three says little. A trial that has passed the rung is
allowed two ranks more, because ranks are noisy and a stopped trial never comes back. This gives up
most of the epochs that judging again saves, on purpose: saving more loses the best trial more
often.

`python -m tests.benchmarks.replay` compares the rules on recorded curves. Both constants were
chosen on half of the curves, so that a search of about forty trials trains no more epochs than with
the shipped variant and loses its best trial no more often; the other half confirms it. These are
averages. Epochs are saved where many trials run side by side. Where few do, hardly any trial is
judged again in time; the two extra ranks then cost a few epochs and lose less, also with reduction
2, and more so in a search of a dozen trials. Pausing and promoting trains least and loses most.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Iterable

from search.experiment.search_config import Asha
from search.record.decisions import Verdict
from search.stopping.rule import StoppingRule

_ALWAYS_CONTINUE = 2  # the best trials at a rung, however few have reached it
_EXTRA_RANKS = 2  # for a trial that has passed the rung


def rung_epochs(grace_epochs: int, reduction: float, epochs: int) -> list[int]:
    """The epochs of the rungs, rounded up, each a factor above the one before; all are below the
    epochs of a whole trial."""
    found: list[int] = []
    rung: float = grace_epochs
    while math.ceil(rung) < epochs:
        found.append(math.ceil(rung))
        rung *= reduction
    return list(dict.fromkeys(found))


class Rungs(StoppingRule):
    """The results of trials at each rung.

    Args:
        asha: the settings of early stopping.
        epochs: the epochs of a whole trial, without those of preparatory stages on top, which no
            rung counts.
        at: the epochs of the rungs; none: by the settings.

    Attributes:
        results: by the rung's epoch and the trial's number, the best accuracy up to that epoch.
    """

    def __init__(self, asha: Asha, *, epochs: int, at: Iterable[int] | None = None) -> None:
        self._reduction = asha.reduction
        if at is None:
            at = rung_epochs(asha.first_epoch(epochs), asha.reduction, epochs)
        self.results: dict[int, dict[int, float]] = {rung: {} for rung in at}
        # Each rung's results from the worst to the best.
        self._ordered: dict[int, list[float]] = {rung: [] for rung in self.results}

    def add(self, trial: int, epoch: int, best_accuracy: float, accuracy: float = math.nan) -> None:
        """Records a trial's best accuracy if the epoch is a rung and the trial is new there."""
        results = self.results.get(epoch)
        if results is None or trial in results:
            return
        results[trial] = best_accuracy
        if not math.isnan(best_accuracy):  # which is neither better nor worse than any other
            insort(self._ordered[epoch], best_accuracy)

    def judge(self, trial: int, epoch: int) -> Verdict | None:
        """What becomes of a trial after an epoch; none before the first rung.

        At a rung it must be among the best 1/reduction, rounded down, or among the best two. Later
        it may be two ranks below that at the last rung it passed.
        """
        passed = [
            rung for rung, results in self.results.items() if rung <= epoch and trial in results
        ]
        if not passed:
            return None
        rung = max(passed)
        results = self.results[rung]
        better = len(self._ordered[rung]) - bisect_right(self._ordered[rung], results[trial])
        places = max(_ALWAYS_CONTINUE, math.floor(len(results) / self._reduction))
        places += _EXTRA_RANKS if epoch > rung else 0
        return Verdict(
            epoch=epoch,
            stops=better >= places,
            rung=rung,
            place=better + 1,
            of=len(results),
            places=places,
        )
