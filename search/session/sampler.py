"""Optuna under Ray Tune, with true trial states, rebuilt from a search's record."""

import math
import warnings
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from search.experiment.space.point import IS_CONTROL, NUMBER, Point
from search.experiment.space.space import Space
from search.record.record import METRIC, TIME, TrialRecord

# Random trials before the model is used: enough to fit a density, few enough to leave a small
# budget.
_STARTUP_SHARE = 1 / 3
_STARTUP_LIMITS = (5, 20)


class TrueStateOptunaSearch(OptunaSearch):
    """Tells Optuna how a trial really ended, and goes on where an earlier session stopped.

    Ray's own class calls an early-stopped trial COMPLETE with the accuracy of its last epoch, and
    leaves one without a finite metric RUNNING for ever. Here the first is PRUNED and the second
    FAIL. The study is built anew from what is recorded, so there is nothing else to keep in step:
    ended trials have their states and reports; those that were cut off wait to be proposed again,
    with the same choices.

    Args:
        space: proposes points.
        trials: how many trials the search will have in all.
        parallel: how many run at a time.
        epochs: the budget of a trial.
        seed: of the sampler. Parallel trials end in varying order, so it repeats trials, not
            searches.
        recorded: trials of earlier sessions of this search.
        earlier: trials of other searches on the same data; those whose choices do not fit into the
            space are left out.

    Attributes:
        adopted: how many of the earlier trials are in the study.
    """

    def __init__(
        self,
        space: Space,
        *,
        trials: int,
        parallel: int,
        epochs: int,
        seed: int,
        recorded: Iterable[TrialRecord] = (),
        earlier: Iterable[TrialRecord] = (),
    ) -> None:
        self._epochs, self._choices = epochs, space
        self._recorded = {trial.number: trial for trial in recorded}
        known = max(self._recorded, default=-1) + 1
        low, high = _STARTUP_LIMITS
        startup = max(parallel, min(high, max(low, round(trials * _STARTUP_SHARE))))
        with warnings.catch_warnings():
            # Grouping is what makes the model use conditional fields; it is marked experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                multivariate=True,
                group=True,
                n_startup_trials=startup,
                # A later session must not draw the first one's random points again.
                seed=(seed + 1_000_003 * known) % 2**32,
            )
        super().__init__(space=space, metric=METRIC, mode="max", sampler=sampler)
        fitting = [frozen for trial in earlier if (frozen := self._frozen_if_fitting(trial))]
        self.adopted = len(fitting)
        # The space knows the controls by their numbers in the study, so they come first.
        self._controls = len(space.students)
        first = space.first_points()[:trials]
        waiting = [
            first[number] if number < len(first) else {} for number in range(max(len(first), known))
        ]
        for number, point in enumerate(waiting[: self._controls]):
            self._add(number, point)
        for frozen in fitting:
            self.study.add_trial(frozen)
        for number, point in enumerate(waiting[self._controls :], start=self._controls):
            self._add(number, point)

    def _add(self, number: int, point: Point) -> None:
        """Adds this search's next trial: as it ended, or waiting to be proposed.

        A process that dies between proposing and starting a trial leaves a number without a record;
        an empty point is sampled when its turn comes.
        """
        trial = self._recorded.get(number)
        if trial is None or trial.unfinished:
            self.study.enqueue_trial(trial.point if trial else point)
        else:
            self.study.add_trial(self._frozen(trial, number))

    def _frozen(self, trial: TrialRecord, number: int) -> optuna.trial.FrozenTrial:
        """A recorded trial as Optuna keeps it.

        Raises:
            ValueError: its choices do not fit into the space.
        """
        fixed = optuna.trial.FixedTrial(trial.point, number=number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values out of range, which are refused below
            constants = self._choices(fixed) or {}
        chosen = fixed.params | constants
        if strange := trial.point.keys() - chosen.keys() - {IS_CONTROL}:
            raise ValueError(f"the space has no {', '.join(sorted(strange))}")
        reports = dict(enumerate(accumulate(trial.accuracies[: self._epochs], max), start=1))
        state, value = TrialState.FAIL, None
        if trial.state != "failed" and trial.heldout_accuracy is not None:
            state = TrialState.PRUNED
            if trial.epochs_done >= self._epochs:
                state, value = TrialState.COMPLETE, reports.get(self._epochs)
        return optuna.trial.create_trial(
            state=state,
            value=value,
            params=fixed.params,
            distributions=fixed.distributions,
            intermediate_values=reports,
        )

    def _frozen_if_fitting(self, trial: TrialRecord) -> optuna.trial.FrozenTrial | None:
        """Another search's trial, judged by this search's budget; none where it does not fit."""
        if trial.state == "failed" or not trial.accuracies:
            return None
        controls = len(self._choices.students)
        try:
            return self._frozen(trial, 0 if IS_CONTROL in trial.point else controls)
        except ValueError:
            return None

    @property
    def study(self) -> optuna.Study:
        """The study behind the search."""
        assert self._ot_study is not None
        return self._ot_study

    def suggest(self, trial_id: str) -> Point:
        """The next point, with the trial's number."""
        trial = self._ot_trials[trial_id] = self.study.ask()
        point: Point = self._suggest_from_define_by_run_func(self._choices, trial)
        number = trial.number
        if number >= self._controls:
            number -= self.adopted
        if number in self._recorded:
            for epoch, best in enumerate(accumulate(self._recorded[number].accuracies, max), 1):
                trial.report(best, epoch)
        return {**point, NUMBER: number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Records an epoch, once; steps are epochs, also after a trial was resumed."""
        self._report(self._ot_trials[trial_id], result)

    def _report(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            # A trial that was started again tells of its earlier epochs once more.
            warnings.filterwarnings("ignore", "The reported value is ignored because")
            if math.isfinite(result[METRIC]):
                trial.report(result[METRIC], result[TIME])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends the Optuna trial as COMPLETE, PRUNED or FAIL, once."""
        if trial_id in self._completed_trials or trial_id not in self._ot_trials:
            return
        trial = self._ot_trials[trial_id]
        state, value = TrialState.FAIL, None
        if not error and result and math.isfinite(result.get(METRIC, math.nan)):
            # The report that ended a trial does not reach on_trial_result.
            self._report(trial, result)
            if result[TIME] < self._epochs:
                state = TrialState.PRUNED
            else:
                state, value = TrialState.COMPLETE, result[METRIC]
        self.study.tell(trial, value, state=state)
        self._completed_trials.add(trial_id)
