"""Ray Tune's schedulers: which trial runs next, and early stopping."""

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from kdcore.training.metric import Metric
from kdcore.training.report import EpochReport
from search.experiment.space.point import IS_CONTROL, NUMBER, Point
from search.record.decisions import Verdict
from search.record.record import METRIC, REASON, REPORT, TIME
from search.stopping.rule import StoppingRule


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

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stops a trial that has said why it failed, as it may not come to its end by itself."""
        return str(TrialScheduler.STOP if REASON in result else TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first trial that waits."""
        for trial in list(self._waiting.values()):
            if trial.status == Trial.PENDING:
                return trial
            # It was started since; Tune also does that by itself, where a process is free.
            del self._waiting[trial.trial_id]
        return None


class ControlSparing(Fifo):
    """Stops the trials that a rule does not keep, except controls.

    Every gain on the leaderboard is measured against a control, so controls run to their last
    epoch. For the rule they count as others do.

    Args:
        rule: of early stopping, with the trials of earlier sessions of the search.
        epochs: the epochs of a whole trial, without those of preparatory stages on top.
        on_top: the number of those, of a point.
        metric: what is compared, `search.metric`.
        verdicts: by number, takes what was decided about a trial at a rung, or to stop it; who
            keeps it takes it out again.
    """

    def __init__(
        self,
        rule: StoppingRule,
        *,
        epochs: int,
        on_top: Callable[[Point], int] = lambda point: 0,
        metric: Metric = "accuracy",
        verdicts: dict[int, Verdict] | None = None,
    ) -> None:
        super().__init__()
        self._rule, self._epochs, self._on_top, self._compared = rule, epochs, on_top, metric
        self._seen: dict[int, int] = {}
        self._verdicts = {} if verdicts is None else verdicts

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decides whether a trial stops or continues."""
        if REASON in result:
            return super().on_trial_result(tune_controller, trial, result)
        number, epoch = trial.config[NUMBER], result[TIME] - self._on_top(trial.config)
        # A restarted trial reports its earlier epochs again.
        again = epoch <= self._seen.get(number, 0)
        self._seen[number] = max(epoch, self._seen.get(number, 0))
        self._rule.add(number, epoch, result[METRIC], self._accuracy(result))
        if epoch >= self._epochs:
            return str(TrialScheduler.STOP)
        if again or IS_CONTROL in trial.config:
            return str(TrialScheduler.CONTINUE)
        verdict = self._rule.judge(number, epoch)
        if verdict is not None and (verdict.stops or verdict.rung == epoch):
            self._verdicts[number] = verdict
        stops = verdict is not None and verdict.stops
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def _accuracy(self, result: dict[str, Any]) -> float:
        """The epoch's own, by the search's metric; what Tune is told otherwise is the best."""
        report: EpochReport = result[REPORT]
        score = report.score_by(self._compared)
        return report.heldout_accuracy if score is None else score
