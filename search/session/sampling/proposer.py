"""What all samplers of this folder do."""

import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.experiment.searched import Option
from search.experiment.space.point import Point, settings_of
from search.experiment.space.space import Space
from search.record.decisions import Proposal
from search.session.sampling.walk import Walk, value_at

Known = Collection[frozenset[tuple[str, Option]]]
"""The settings of all trials so far."""

_TRIES = 100


class Proposer(Protocol):
    """Proposes points; what it proposes follows from what it is given, and from a seed."""

    def propose(
        self, number: int, ended: Sequence[FrozenTrial], known: Known
    ) -> tuple[Point, Proposal]:
        """The point of a trial, and where it came from.

        Args:
            number: of the trial.
            ended: trials that have ended with a result, or a part of them, in their order.
            known: settings that are not proposed again, as long as there are others.
        """


def unless_known(
    point: Point, proposal: Proposal, space: Space, known: Known, seed: int
) -> tuple[Point, Proposal]:
    """A point as it was proposed, or where it has been there a random one that has not: to train
    the same again would give the same."""
    chance = random.Random(seed)
    for _ in range(_TRIES):
        if settings_of(point) not in known:
            break
        point = space.propose(Walk(lambda _, field: value_at(field, chance.random())))
        proposal = proposal.model_copy(update={"redrawn": True})
    return point, proposal


def seed_of(seed: int, number: int) -> int:
    """The seed of one proposal: a later session must not draw again what an earlier one drew."""
    return (seed + 1_000_003 * number) % 2**32


def with_fields(trial: FrozenTrial, names: Collection[str], state: TrialState) -> FrozenTrial:
    """A trial of which a study knows only some fields."""
    return optuna.trial.create_trial(
        state=state,
        value=trial.value,
        params={name: trial.params[name] for name in names},
        distributions={name: trial.distributions[name] for name in names},
        intermediate_values=trial.intermediate_values,
    )


@contextmanager
def without_messages() -> Iterator[None]:
    """Optuna says of each study that it was created."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
