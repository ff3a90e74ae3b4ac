"""Ray Tune's schedulers: which trial runs next, and early stopping."""

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.experiment.space.point import IS_CONTROL, NUMBER, Point
from search.record.record import METRIC, REASON, TIME
from search.stopping.rungs import Rungs


class Fifo(FIFOScheduler):
    """Runs trials in the order in which they came.

    Tune's own looks through all trials of the search for the next one, at every report.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waiting: dict[str, Trial] = {}  # by Tune's id, the next one first

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial waits behind the others; so does one that failed and is tried again."""
        self._waiting.pop(trial.trial_id, None)
        self._waiting[trial.trial_id] = trial

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first trial that waits."""
        for trial in list(self._waiting.values()):
            if trial.status == Trial.PENDING:
                return trial
            # It was started since; Tune also does that by itself, where a process is free.
            del self._waiting[trial.trial_id]
        return None


class ControlSparingAsha(Fifo):
    """Stops the trials that the rungs do not keep, except controls.

    Every gain on the leaderboard is measured against a control, so controls run to their last
    epoch. Their results count at the rungs.

    Args:
        rungs: the rungs, with the results of earlier sessions of the search.
        epochs: the epochs of a whole trial, without those of preparatory stages on top.
        on_top: the number of those, of a point.
    """

    def __init__(
        self, rungs: Rungs, *, epochs: int, on_top: Callable[[Point], int] = lambda point: 0
    ) -> None:
        super().__init__()
        self._rungs, self._epochs, self._on_top = rungs, epochs, on_top
        self._seen: dict[int, int] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decides whether a trial stops or continues."""
        if REASON in result:
            return str(TrialScheduler.STOP)
        number, epoch = trial.config[NUMBER], result[TIME] - self._on_top(trial.config)
        # A restarted trial reports its earlier epochs again.
        again = epoch <= self._seen.get(number, 0)
        self._seen[number] = max(epoch, self._seen.get(number, 0))
        self._rungs.add(number, epoch, result[METRIC])
        spared = again or IS_CONTROL in trial.config
        if epoch < self._epochs and (spared or self._rungs.keeps(number, epoch)):
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP)
