"""Early stopping: asynchronous successive halving that never stops the control."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from search.experiment import Asha
from search.searcher import METRIC, TIME
from search.space import IS_CONTROL


class ControlSparingAsha(ASHAScheduler):
    """ASHA whose control runs to its end: every gain on the leaderboard is measured against it.

    Args:
        asha: the rungs.
        epochs: the budget of a trial.
    """

    def __init__(self, asha: Asha, *, epochs: int) -> None:
        super().__init__(
            time_attr=TIME,
            metric=METRIC,
            mode="max",
            max_t=epochs,
            grace_period=asha.grace_epochs,
            reduction_factor=asha.reduction,
        )

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stops the trial or lets it go on; the control's results count in the rungs too."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if IS_CONTROL in trial.config and result[TIME] < self._max_t:
            return str(TrialScheduler.CONTINUE)
        return decision
