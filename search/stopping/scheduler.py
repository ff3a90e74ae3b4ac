"""Early stopping under Ray Tune: poor trials end at a rung, the control never."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.experiment.space.point import IS_CONTROL, NUMBER
from search.record.record import METRIC, REASON, TIME
from search.stopping.rungs import Rungs


class ControlSparingAsha(FIFOScheduler):
    """Stops what the rungs do not keep. Controls run to their end, because every gain on the
    leaderboard is measured against them; their results count in the rungs.

    Args:
        rungs: with the results of earlier sessions of the search.
        epochs: the budget of a trial.
    """

    def __init__(self, rungs: Rungs, *, epochs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rungs, self._epochs = rungs, epochs
        self._seen: dict[int, int] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stops the trial or lets it go on."""
        number, epoch = trial.config[NUMBER], result[TIME]
        if REASON in result:
            return str(TrialScheduler.STOP)
        # A trial that was started again tells of its earlier epochs once more.
        again = epoch <= self._seen.get(number, 0)
        self._seen[number] = max(epoch, self._seen.get(number, 0))
        self._rungs.add(number, epoch, result[METRIC])
        spared = again or IS_CONTROL in trial.config
        if epoch < self._epochs and (spared or self._rungs.keeps(number, epoch)):
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP)
