"""Optuna under Ray Tune, with true trial states."""

import math
import warnings
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from search.space import Space

METRIC = "best_heldout_accuracy"
TIME = "epoch"

# Random trials before the model is used: enough to fit a density, few enough to leave a small
# budget.
_STARTUP_SHARE = 1 / 3
_STARTUP_LIMITS = (5, 20)


class TrueStateOptunaSearch(OptunaSearch):
    """Tells Optuna how a trial really ended.

    Ray's own class calls an early-stopped trial COMPLETE with the accuracy of its last epoch, and
    leaves one without a finite metric RUNNING for ever. Here the first is PRUNED and the second
    FAIL.

    Args:
        space: proposes points.
        trials: how many trials the search will have.
        parallel: how many run at a time.
        epochs: the budget of a trial.
        seed: of the sampler. Parallel trials end in varying order, so it repeats trials, not
            searches.
    """

    def __init__(self, space: Space, *, trials: int, parallel: int, epochs: int, seed: int) -> None:
        low, high = _STARTUP_LIMITS
        startup = max(parallel, min(high, max(low, round(trials * _STARTUP_SHARE))))
        with warnings.catch_warnings():
            # Grouping is what makes the model use conditional fields; it is marked experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                multivariate=True, group=True, n_startup_trials=startup, seed=seed
            )
        super().__init__(
            space=space,
            metric=METRIC,
            mode="max",
            points_to_evaluate=space.first_points()[:trials],
            sampler=sampler,
        )
        self._epochs = epochs

    @property
    def study(self) -> optuna.Study:
        """The study behind the search."""
        assert self._ot_study is not None
        return self._ot_study

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Records an epoch; steps are epochs, also after a trial was resumed."""
        if math.isfinite(result[METRIC]):
            self._ot_trials[trial_id].report(result[METRIC], result[TIME])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends the Optuna trial as COMPLETE, PRUNED or FAIL, once."""
        if trial_id in self._completed_trials or trial_id not in self._ot_trials:
            return
        trial = self._ot_trials[trial_id]
        state, value = optuna.trial.TrialState.FAIL, None
        if not error and result and math.isfinite(result.get(METRIC, math.nan)):
            # The report that ended a trial does not reach on_trial_result.
            trial.report(result[METRIC], result[TIME])
            if result[TIME] < self._epochs:
                state = optuna.trial.TrialState.PRUNED
            else:
                state, value = optuna.trial.TrialState.COMPLETE, result[METRIC]
        self.study.tell(trial, value, state=state)
        self._completed_trials.add(trial_id)
