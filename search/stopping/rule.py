"""What every rule of early stopping is."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import accumulate

from search.record.decisions import Verdict


class StoppingRule(ABC):
    """Decides which trials stop early, by what trials reached after which epoch alone: so a later
    session builds it again from their recorded curves."""

    @abstractmethod
    def add(self, trial: int, epoch: int, best_accuracy: float, accuracy: float) -> None:
        """Records a trial's epoch; one that is known already changes nothing.

        Args:
            trial: its number.
            epoch: from 1; earlier ones are those on top, which count for nothing.
            best_accuracy: up to this epoch.
            accuracy: of this epoch.
        """

    @abstractmethod
    def judge(self, trial: int, epoch: int) -> Verdict | None:
        """What becomes of a trial after an epoch; none where it is not compared."""

    def add_curve(self, trial: int, accuracies: Iterable[float], on_top: int = 0) -> None:
        """Records a trial's epochs, from the first one on; those on top come before epoch 1."""
        curve = list(accuracies)
        bests = accumulate(curve, max)
        for epoch, (best, accuracy) in enumerate(zip(bests, curve, strict=True), start=1 - on_top):
            self.add(trial, epoch, best, accuracy)

    def keeps(self, trial: int, epoch: int) -> bool:
        """Whether a trial continues after an epoch."""
        verdict = self.judge(trial, epoch)
        return verdict is None or not verdict.stops
