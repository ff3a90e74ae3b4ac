"""Asks Optuna for trials under Ray Tune; the study is built from the search's record."""

import math
import pickle
import warnings
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search.experiment.space.point import IS_CONTROL, NUMBER, Point
from search.experiment.space.space import Space
from search.record.record import METRIC, TIME, TrialRecord

# Random trials before the model is used: enough to fit a density, few enough to leave a small
# budget.
_STARTUP_SHARE = 1 / 3
_STARTUP_LIMITS = (5, 20)


class OptunaSampler(Searcher):
    """Asks an Optuna study for points, and tells it how each trial ended.

    A trial that early stopping cut is PRUNED, one without a finite metric FAIL. The study is built
    anew from what is recorded, so there is nothing else to keep in step: ended trials have their
    states and reports; those that were cut off wait to be proposed again, with the same choices.

    Args:
        space: proposes points.
        trials: number of trials of the whole search.
        parallel: number of trials at a time.
        epochs: the budget of a trial.
        seed: of the sampler. Parallel trials end in varying order, so it repeats trials, not
            searches.
        recorded: trials of earlier sessions of this search.
        earlier: trials of other searches on the same data; those whose choices do not fit into the
            space are left out.

    Attributes:
        study: the study.
        adopted: number of earlier trials in the study.
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
        super().__init__(metric=METRIC, mode="max")
        self._space, self._epochs = space, epochs
        self._recorded = {trial.number: trial for trial in recorded}
        self._asked: dict[str, optuna.Trial] = {}
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
        self.study = optuna.create_study(sampler=sampler, direction="maximize")
        fitting = [frozen for trial in earlier if (frozen := self._frozen_if_fitting(trial))]
        self.adopted = len(fitting)
        for frozen in fitting:
            self.study.add_trial(frozen)
        # A process that dies between proposing and starting a trial leaves a number without a
        # record; its point is sampled when its turn comes, where it is none of the first ones.
        first = dict(enumerate(space.first_points()[:trials]))
        self._next = max(len(first), known)
        for number in range(self._next):
            trial = self._recorded.get(number)
            if trial is None or trial.unfinished:
                point = trial.point if trial else first.get(number, {})
                attributes = {NUMBER: number, IS_CONTROL: IS_CONTROL in point}
                self.study.enqueue_trial(point, user_attrs=attributes)
            else:
                self.study.add_trial(self._frozen(trial))

    def suggest(self, trial_id: str) -> Point:
        """The next point, with the trial's number."""
        trial = self._asked[trial_id] = self.study.ask()
        number = trial.user_attrs.get(NUMBER)
        if number is None:
            number = self._next
            self._next += 1
        point = self._space.propose(trial, control=trial.user_attrs.get(IS_CONTROL, False))
        if number in self._recorded:
            for epoch, best in enumerate(accumulate(self._recorded[number].accuracies, max), 1):
                trial.report(best, epoch)
        return {**point, NUMBER: number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Records an epoch, once; steps are epochs, also after a trial was resumed."""
        self._report(self._asked[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends the Optuna trial as COMPLETE, PRUNED or FAIL, once."""
        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return
        state, value = TrialState.FAIL, None
        if not error and result and math.isfinite(result.get(METRIC, math.nan)):
            # The report that ended a trial does not reach on_trial_result.
            self._report(trial, result)
            if result[TIME] < self._epochs:
                state = TrialState.PRUNED
            else:
                state, value = TrialState.COMPLETE, result[METRIC]
        self.study.tell(trial, value, state=state)

    def save(self, checkpoint_path: str) -> None:
        """Writes the study; a later session does not read it, but builds it from the record."""
        Path(checkpoint_path).write_bytes(pickle.dumps(self.study))

    def _report(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            # A restarted trial reports its earlier epochs again.
            warnings.filterwarnings("ignore", "The reported value is ignored because")
            if math.isfinite(result[METRIC]):
                trial.report(result[METRIC], result[TIME])

    def _frozen(self, trial: TrialRecord) -> optuna.trial.FrozenTrial:
        """A recorded trial as Optuna keeps it.

        Raises:
            ValueError: its choices do not fit into the space.
        """
        fixed = optuna.trial.FixedTrial(trial.point)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values out of range, which are refused below
            chosen = self._space.propose(fixed, control=IS_CONTROL in trial.point)
        if strange := trial.point.keys() - chosen.keys():
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
        try:
            return self._frozen(trial)
        except ValueError:
            return None
