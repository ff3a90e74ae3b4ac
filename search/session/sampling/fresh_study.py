"""Optuna's TPE and random values, where the study is not the search's own."""

from collections.abc import Callable, Sequence

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search.experiment.space.point import Point
from search.experiment.space.space import Space
from search.record.decisions import Proposal
from search.session.sampling.proposer import Known, seed_of, unless_known, without_messages


class FreshStudy:
    """A study for each proposal, of the trials that are given: it needs nothing but these.

    Args:
        space: proposes points.
        sampler: of a study, by its seed.
        proposal: what is said of a point, but for the number of results.
        seed: of all that is random.
    """

    def __init__(
        self,
        space: Space,
        sampler: Callable[[int], BaseSampler],
        proposal: Proposal,
        seed: int,
    ) -> None:
        self._space, self._sampler = space, sampler
        self._proposal, self._seed = proposal, seed

    def propose(
        self, number: int, ended: Sequence[FrozenTrial], known: Known
    ) -> tuple[Point, Proposal]:
        """See `Proposer`."""
        seed = seed_of(self._seed, number)
        with without_messages():
            study = optuna.create_study(sampler=self._sampler(seed), direction="maximize")
            study.add_trials(ended)
            point = self._space.propose(study.ask())
        proposal = self._proposal
        if proposal.needed is not None:  # it learns
            proposal = proposal.model_copy(update={"results": len(ended)})
        return unless_known(point, proposal, self._space, known, seed)
