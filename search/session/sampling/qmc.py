"""Quasi-random points: they fill the space more evenly than random ones (Bergstra and Bengio, JMLR
2012)."""

from collections.abc import Sequence
from typing import Any

import torch
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from torch.quasirandom import SobolEngine

from search.experiment.space.point import STUDENT, TEACHER, Point, slot
from search.experiment.space.space import Space
from search.record.decisions import Proposal
from search.session.sampling.proposer import Known, seed_of, unless_known
from search.session.sampling.walk import Walk, value_at


class QuasiRandom:
    """One scrambled Sobol sequence for the whole space.

    Optuna's own QMC sampler takes its fields from the first trial of a study. Here each field reads
    a coordinate of its own, whether or not the methods before it bring it, but fields of methods
    that exclude each other share theirs. So networks, methods and shared fields are even among all
    trials, and the settings of a method among those that have it. The n-th point follows from n and
    the seed, whatever else is known.

    Args:
        space: proposes points.
        seed: scrambles the sequence.
        first: number of the trial that has its first point.
    """

    def __init__(self, space: Space, *, seed: int, first: int) -> None:
        self._space, self._seed, self._first = space, seed, first
        names = [STUDENT, *(each.name for each in space.shared)]
        names += [TEACHER] if len(space.teachers) > 1 else []
        self._coordinates = {name: place for place, name in enumerate(names)}
        size = len(names)
        for number, candidates in enumerate(space.slots, start=1):
            self._coordinates[slot(number)] = size
            of_methods = [
                fields for (*_, method), fields in space.fields.items() if method in candidates
            ]
            for fields in of_methods:
                for place, each in enumerate(fields, start=size + 1):
                    self._coordinates[each.name] = place
            size += 1 + max(map(len, of_methods))
        self._size = size

    def propose(
        self, number: int, ended: Sequence[FrozenTrial], known: Known
    ) -> tuple[Point, Proposal]:
        """See `Proposer`."""
        sequence: Any = SobolEngine(self._size, scramble=True, seed=self._seed)  # type: ignore[no-untyped-call]
        if number > self._first:
            sequence.fast_forward(number - self._first)
        (shares,) = sequence.draw(1, dtype=torch.float64).tolist()

        def answer(name: str, field: BaseDistribution) -> object:
            return value_at(field, shares[self._coordinates[name]])

        point = self._space.propose(Walk(answer))
        seed = seed_of(self._seed, number)
        return unless_known(point, Proposal(by="qmc"), self._space, known, seed)
