"""The median stopping rule.

After Golovin et al., Google Vizier, KDD 2017, section 3.2.2: a trial is stopped after an epoch if
its best accuracy so far is below the median, over the trials that have ended whole, of the mean of
their accuracies up to that epoch. It assumes nothing of the shape of the curves, and compares with
whole trials alone, so what it stops depends neither on when a trial came nor on who was stopped.
"""

from bisect import insort
from statistics import median

from search.experiment.search_config import Median
from search.record.decisions import Verdict
from search.stopping.rule import StoppingRule


class RunningAverages(StoppingRule):
    """The curves of trials, and the running averages of those that have ended whole.

    Args:
        settings: of the rule.
        epochs: the epochs of a whole trial, without those of preparatory stages on top.
    """

    def __init__(self, settings: Median, *, epochs: int) -> None:
        self._settings, self._epochs = settings, epochs
        self._bests: dict[int, list[float]] = {}
        self._averages: dict[int, list[float]] = {}
        # By epoch, the averages of whole trials from the worst to the best.
        self._whole: list[list[float]] = [[] for _ in range(epochs)]

    def add(self, trial: int, epoch: int, best_accuracy: float, accuracy: float) -> None:
        """See `StoppingRule`; others are compared with a trial once it has come to its end."""
        averages = self._averages.setdefault(trial, [])
        if epoch != len(averages) + 1 or epoch > self._epochs:
            return  # of preparatory stages, or told once more
        before = averages[-1] if averages else 0.0
        averages.append(before + (accuracy - before) / epoch)
        self._bests.setdefault(trial, []).append(best_accuracy)
        if epoch == self._epochs:
            for ordered, average in zip(self._whole, averages, strict=True):
                insort(ordered, average)

    def judge(self, trial: int, epoch: int) -> Verdict | None:
        """See `StoppingRule`; it is compared from the grace epochs on, once enough trials have
        ended whole."""
        bests = self._bests.get(trial, [])
        if not self._settings.first_epoch(self._epochs) <= epoch <= len(bests):
            return None
        ended = self._whole[epoch - 1]
        if len(ended) < self._settings.min_trials:
            return None
        middle, best = median(ended), bests[epoch - 1]
        return Verdict(epoch=epoch, stops=best < middle, of=len(ended), best=best, median=middle)
