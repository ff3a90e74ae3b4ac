"""Early stopping as a Ray Tune scheduler."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.experiment.space.point import IS_CONTROL, NUMBER
from search.record.record import METRIC, REASON, TIME
from search.stopping.rungs import Rungs


class ControlSparingAsha(FIFOScheduler):
    """Stops the trials that the rungs do not keep, except controls.

    Every gain on the leaderboard is measured against a control, so controls run to their last
    epoch. Their results count at the rungs.

    Args:
        rungs: the rungs, with the results of earlier sessions of the search.
        epochs: the epochs of a whole trial.
    """

    def __init__(self, rungs: Rungs, *, epochs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rungs, self._epochs = rungs, epochs
        self._seen: dict[int, int] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decides whether a trial stops or continues."""
        number, epoch = trial.config[NUMBER], result[TIME]
        if REASON in result:
            return str(TrialScheduler.STOP)
        # A restarted trial reports its earlier epochs again.
        again = epoch <= self._seen.get(number, 0)
        self._seen[number] = max(epoch, self._seen.get(number, 0))
        self._rungs.add(number, epoch, result[METRIC])
        spared = again or IS_CONTROL in trial.config
        if epoch < self._epochs and (spared or self._rungs.keeps(number, epoch)):
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP)
