"""Models that need the same fields in every trial: one for each combination of student, teacher and
methods."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search.experiment.space.point import STUDENT, TEACHER, Point, slot
from search.experiment.space.space import Space
from search.record.decisions import Proposal
from search.session.sampling.proposer import (
    Known,
    seed_of,
    unless_known,
    with_fields,
    without_messages,
)
from search.session.sampling.walk import Walk, value_at

_FEWEST = 4
"""Results of a combination with which its model begins."""

Fields = Mapping[str, BaseDistribution]


class ByCombination:
    """Student, teacher, methods and what other settings need by TPE, the settings by a Gaussian
    process or CMA-ES.

    These two of Optuna's samplers model only what all trials of a study have, and in a space where
    methods bring their own fields that is nothing, or the learning rate. So student, teacher,
    methods and what decides which other settings there are (like the optimizer, where its momentum
    is searched) are chosen first, by TPE from all trials; then the settings, by the model of those
    trials that had the same. Such a model is fitted anew for each proposal, so it needs nothing
    but the trials. A trial that was stopped early counts with the score that it had then.

    - `gp`: a Gaussian process with log expected improvement, for numbers and choices. It takes
      trials that run into account. Settings are random for a combination's first four results.
    - `cmaes`: CMA-ES for the numbers, which begins in the middle of the ranges and moves on with
      every 4 + 3 ln(d) results for d numbers; so it is for searches with many trials of few
      combinations. It knows no choices: these are by TPE, from the combination's trials.

    Args:
        space: proposes points.
        model: of the settings.
        startup: number of results before TPE chooses networks and methods; random until then.
        seed: of all that is random.
        running: the settings of the trials that run.
    """

    def __init__(
        self,
        space: Space,
        *,
        model: Literal["gp", "cmaes"],
        startup: int,
        seed: int,
        running: Callable[[], list[Point]],
    ) -> None:
        self._space, self._model, self._startup = space, model, startup
        self._seed, self._running = seed, running
        self._needed = {slot(number) for number in range(1, len(space.slots) + 1)}
        self._needed |= {STUDENT} if len(space.students) > 1 else set()
        self._deciding = self._needed | {each.name for each in space.deciding}
        self._deciding |= {TEACHER} if len(space.teachers) > 1 else set()

    def propose(
        self, number: int, ended: Sequence[FrozenTrial], known: Known
    ) -> tuple[Point, Proposal]:
        """See `Proposer`."""
        seed = seed_of(self._seed, number)
        whole = [trial for trial in ended if self._needed <= trial.params.keys()]
        with without_messages():
            choice, fields = self._choose(whole, seed)
            alike = [
                trial
                for trial in whole
                if choice.items() <= trial.params.items() and fields.keys() <= trial.params.keys()
            ]
            fit = self._gaussian_process if self._model == "gp" else self._evolution
            answers = choice | fit(choice, fields, alike, seed)
        point = self._space.propose(Walk(lambda name, field: answers[name]))
        proposal = Proposal(
            by=self._model,
            results=len(whole),
            needed=self._startup,
            alike=len(alike),
            alike_needed=_FEWEST if self._model == "gp" else 1,
        )
        return unless_known(point, proposal, self._space, known, seed)

    def _choose(self, trials: Sequence[FrozenTrial], seed: int) -> tuple[Point, Fields]:
        """Networks, methods and what else decides, and the fields that these bring."""
        study = _study(TPESampler(multivariate=True, n_startup_trials=self._startup, seed=seed))
        for trial in trials:
            known = self._deciding & trial.params.keys()
            study.add_trial(with_fields(trial, known, trial.state))
        asked = study.ask()

        def answer(name: str, field: BaseDistribution) -> object:
            if name not in self._deciding:
                return value_at(field, 0.5)
            assert isinstance(field, CategoricalDistribution)
            return asked.suggest_categorical(name, field.choices)

        walk = Walk(answer)
        self._space.propose(walk)
        fields = {n: each for n, each in walk.distributions.items() if n not in self._deciding}
        return dict(asked.params), fields

    def _gaussian_process(
        self, choice: Point, fields: Fields, alike: Sequence[FrozenTrial], seed: int
    ) -> Point:
        study = _study(
            GPSampler(seed=seed, n_startup_trials=_FEWEST, warn_independent_sampling=False)
        )
        for trial in alike:
            study.add_trial(with_fields(trial, fields.keys(), TrialState.COMPLETE))
        for point in self._running():
            if choice.items() <= point.items() and fields.keys() <= point.keys():
                params = {name: point[name] for name in fields}
                study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.RUNNING, params=params, distributions=dict(fields)
                    )
                )
        return dict(study.ask(dict(fields)).params)

    def _evolution(
        self, choice: Point, fields: Fields, alike: Sequence[FrozenTrial], seed: int
    ) -> Point:
        others = TPESampler(n_startup_trials=_FEWEST, seed=seed)
        study = _study(
            CmaEsSampler(seed=seed, independent_sampler=others, warn_independent_sampling=False)
        )
        # Its state is in the trials that it was asked for, so it is asked for all of them again.
        for trial in alike:
            study.enqueue_trial({name: trial.params[name] for name in fields})
            study.tell(study.ask(dict(fields)), trial.value)
        return dict(study.ask(dict(fields)).params)


def _study(sampler: BaseSampler) -> optuna.Study:
    return optuna.create_study(sampler=sampler, direction="maximize")
