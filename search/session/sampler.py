"""Asks Optuna for trials under Ray Tune; the study is built from the search's record."""

import math
import pickle
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.experiment.search_config import SamplerName
from search.experiment.space.point import IS_CONTROL, NUMBER, Point, settings_of
from search.experiment.space.space import Space
from search.record.decisions import Proposal
from search.record.record import METRIC, TIME, TrialRecord
from search.session.sampling.named import proposer_of, study_sampler
from search.session.sampling.proposer import seed_of
from search.session.sampling.thinning import thinned

# Random trials before the model is used: enough to fit a density, few enough to leave a small
# budget.
_STARTUP_SHARE = 1 / 3
_STARTUP_LIMITS = (5, 20)

# A proposal looks at every trial of its study several times, so a study that has more trials than
# this gives way to one of fewer: the best, and a sample of the others.
# `python -m tests.benchmarks.sampler` shows what that saves, and what it costs in accuracy.
LEARNS_FROM = 250


class OptunaSampler(Searcher):
    """Asks an Optuna study for points, and tells it how each trial ended.

    A trial that early stopping cut is PRUNED, one without a finite metric FAIL. The study is built
    anew from what is recorded, so there is nothing else to keep in step: ended trials have their
    states and last reports; those that were cut off wait to be proposed again, with the same
    choices. A long search builds it anew now and then as well, to keep it small.

    Args:
        space: proposes points.
        trials: number of trials of the whole search.
        parallel: number of trials at a time.
        epochs: the budget of a trial, without epochs of preparatory stages on top.
        seed: of the sampler. Parallel trials end in varying order, so it repeats trials, not
            searches.
        recorded: trials of earlier sessions of this search.
        earlier: trials of other searches on the same data; those whose choices do not fit into the
            space are left out.
        learns_from: the largest number of ended trials in the study.
        on_top: the number of epochs on top, of a point.
        sampler: what proposes points after the first ones.
        grid_steps: values of a range on the grid.
        costs: by student, where the front of accuracy against them is sought; a study then keeps
            the trials, but each proposal is made from all that have ended.

    Attributes:
        study: the study that is asked now.
        adopted: number of earlier trials that fit.
        proposals: by number, where the points came from that were proposed first here.
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
        learns_from: int = LEARNS_FROM,
        on_top: Callable[[Point], int] = lambda point: 0,
        sampler: SamplerName = "tpe",
        grid_steps: int = 3,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._space, self._epochs, self._seed, self._on_top = space, epochs, seed, on_top
        self._learns_from, self._sampler = learns_from, sampler
        self._from_all = costs is not None
        low, high = _STARTUP_LIMITS
        self._startup = max(parallel, min(high, max(low, round(trials * _STARTUP_SHARE))))
        self._asked: dict[str, optuna.Trial] = {}
        self._ahead: dict[str, int] = {}  # epochs on top of those that were asked for
        known = {trial.number: trial for trial in recorded}
        fitting = [frozen for trial in earlier if (frozen := self._frozen_if_fitting(trial))]
        self.adopted = len(fitting)
        ended = (known[n] for n in sorted(known) if not known[n].unfinished)
        # All trials that have ended and have a result, in their order.
        self._ended = fitting + [self._frozen(trial) for trial in ended if _has_result(trial)]
        # A process that dies between proposing and starting a trial leaves a number without a
        # record; its point is sampled when its turn comes, where it is none of the first ones.
        first = space.first_points()
        points = dict(enumerate(first[:trials]))
        self.proposals = {
            number: Proposal(by=self._first_by(number, len(first)))
            for number in points.keys() - known.keys()
        }
        self._proposer = proposer_of(
            sampler,
            space,
            grid_steps=grid_steps,
            startup=self._startup,
            seed=seed,
            first=len(first),
            running=lambda: [trial.params for trial in self._asked.values()],
            learns_from=learns_from,
            costs=costs,
        )
        self._next = max(len(points), max(known, default=-1) + 1)
        points |= {number: trial.point for number, trial in known.items()}
        self._known = {settings_of(point) for point in (*first, *points.values())}
        self._waiting = deque(
            (number, points.get(number, {}))
            for number in range(self._next)
            if number not in known or known[number].unfinished
        )
        # A later session must not draw the first one's random points again.
        self._build_study(drawn=max(known, default=-1) + 1)

    def suggest(self, trial_id: str) -> Point:
        """The next point, with the trial's number."""
        if self._learned > self._learns_from:
            self._build_study(drawn=self._next)
        number, point = self._waiting.popleft() if self._waiting else (self._next, {})
        self._next = max(self._next, number + 1)
        if not point:
            point, self.proposals[number] = self._drawn(number)
        if point:
            self.study.enqueue_trial(point)
        trial = self._asked[trial_id] = self.study.ask()
        chosen = self._space.propose(trial, control=IS_CONTROL in point)
        self._ahead[trial_id] = self._on_top(chosen)
        self._known.add(settings_of(chosen))
        return {**chosen, NUMBER: number}

    def _drawn(self, number: int) -> tuple[Point, Proposal]:
        """A new point, and where it came from; an empty one where the study is to propose it."""
        if self._proposer is not None:
            states = (TrialState.COMPLETE, TrialState.PRUNED)
            in_study = self.study.get_trials(deepcopy=False, states=states)
            ended = self._ended if self._from_all else in_study
            return self._proposer.propose(number, ended, self._known)
        if self._sampler == "random":
            return {}, Proposal(by="random")
        return {}, Proposal(by="tpe", results=self._learned, needed=self._startup)

    def _first_by(
        self, number: int, first: int
    ) -> Literal["control", "asked", "published", "prior"]:
        """What one of the space's first points is, by its number and theirs."""
        asked = number - len(self._space.students)
        if asked < 0:
            return "control"
        if number >= first - len(self._space.prior):
            return "prior"
        return "asked" if asked < len(self._space.asked) else "published"

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends the Optuna trial as COMPLETE, PRUNED or FAIL, once.

        Of a trial's reports Optuna gets only the last: it compares pruned trials by that.
        """
        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return
        ahead = self._ahead.pop(trial_id)
        if error or not result or not math.isfinite(result.get(METRIC, math.nan)):
            self.study.tell(trial, state=TrialState.FAIL)
            return
        epoch = max(0, result[TIME] - ahead)
        trial.report(result[METRIC], epoch)
        state, value = TrialState.PRUNED, None
        if epoch >= self._epochs:
            state, value = TrialState.COMPLETE, result[METRIC]
        self._ended.append(self.study.tell(trial, value, state=state))
        self._learned += 1

    def save(self, checkpoint_path: str) -> None:
        """Writes the study; a later session does not read it, but builds it from the record."""
        Path(checkpoint_path).write_bytes(pickle.dumps(self.study))

    def _build_study(self, drawn: int) -> None:
        """A study of what has ended, or of a part of it; trials that run go on in it.

        Args:
            drawn: number of points that were drawn before, with other seeds.
        """
        seed = seed_of(self._seed, drawn)
        sampler = study_sampler(self._sampler, startup=self._startup, seed=seed)
        self.study = optuna.create_study(sampler=sampler, direction="maximize")
        kept = thinned(self._ended, self._learns_from, random.Random(seed))
        for frozen in kept:
            self.study.add_trial(frozen)
        self._learned = len(kept)
        for trial_id, trial in self._asked.items():
            self.study.enqueue_trial(trial.params)
            self._asked[trial_id] = self.study.ask(trial.distributions)

    def _frozen(self, trial: TrialRecord) -> FrozenTrial:
        """A recorded trial that has a result, as Optuna keeps it.

        Raises:
            ValueError: its choices do not fit into the space.
        """
        fixed = optuna.trial.FixedTrial(trial.point)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values out of range, which are refused below
            chosen = self._space.propose(fixed, control=IS_CONTROL in trial.point)
        if strange := trial.point.keys() - chosen.keys():
            raise ValueError(f"the space has no {', '.join(sorted(strange))}")
        ahead = self._on_top(trial.point)
        best = list(accumulate(trial.curve[: ahead + self._epochs], max))
        complete = trial.epochs_done >= ahead + self._epochs
        return optuna.trial.create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED,
            value=best[-1],
            params=fixed.params,
            distributions=fixed.distributions,
            intermediate_values={max(0, len(best) - ahead): best[-1]},
        )

    def _frozen_if_fitting(self, trial: TrialRecord) -> FrozenTrial | None:
        """Another search's trial, judged by this search's budget; none where it does not fit."""
        if not _has_result(trial):
            return None
        try:
            return self._frozen(trial)
        except ValueError:
            return None


def _has_result(trial: TrialRecord) -> bool:
    return trial.state != "failed" and bool(trial.accuracies)
