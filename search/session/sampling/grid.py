"""All points of a grid, each once."""

import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from search.errors import SearchError
from search.experiment.schema import Experiment
from search.experiment.space.point import Point, settings_of
from search.experiment.space.space import Space
from search.record.decisions import Proposal
from search.session.sampling.proposer import Known
from search.session.sampling.walk import Walk, on_scale, value_at

_DIGITS = 6  # of a value between the ends of a range, for whoever reads it


@dataclass(frozen=True)
class _Block:
    """The points of one student and teacher with one choice of methods, and of what other fields
    need: all combinations of the values of each of its fields, by name."""

    values: dict[str, tuple[Any, ...]]

    @property
    def size(self) -> int:
        return math.prod(map(len, self.values.values()))

    def point(self, index: int) -> Point:
        point: Point = {}
        for name, values in reversed(self.values.items()):
            index, place = divmod(index, len(values))
            point[name] = values[place]
        return {name: point[name] for name in self.values}

    def index(self, settings: Point) -> int | None:
        """Where a point is; none where it is not on the grid."""
        if settings.keys() != self.values.keys():
            return None
        index = 0
        for name, values in self.values.items():
            places = [i for i, value in enumerate(values) if _equal(value, settings[name])]
            if not places:
                return None
            index = index * len(values) + places[0]
        return index


class Grid:
    """Every choice of networks, methods and options, with some values of each range: both ends, and
    those between them evenly on the field's scale. Fields of methods that are not chosen are not
    varied. The order is a random one, so that a part of the grid is spread over all of it.

    Args:
        space: proposes points.
        steps: number of values of a range; of whole numbers at most as many as there are.
        seed: of the order.

    Attributes:
        size: number of points.
        left: number of those that are not among the first trials.
    """

    def __init__(self, space: Space, *, steps: int, seed: int) -> None:
        self._blocks = []
        for choice in space.choices():
            walk = Walk(partial(_first_value, choice))
            space.propose(walk)
            values = {
                name: (choice[name],) if name in choice else _values(field, steps)
                for name, field in walk.distributions.items()
            }
            self._blocks.append(_Block(values))
        self._ends = list(accumulate(block.size for block in self._blocks))
        self.size = self._ends[-1]
        first = (self._index(dict(settings_of(point))) for point in space.first_points())
        self._first = {index for index in first if index is not None}
        self.left = self.size - len(self._first)
        self._order = _Order(self.size, seed)

    def propose(
        self, number: int, ended: Sequence[FrozenTrial], known: Known
    ) -> tuple[Point, Proposal]:
        """See `Proposer`.

        Raises:
            SearchError: all points of the grid are known.
        """
        for index in self._order:
            block = bisect_right(self._ends, index)
            of_block = self._blocks[block]
            point = of_block.point(index - self._ends[block] + of_block.size)
            if index not in self._first and settings_of(point) not in known:
                return point, Proposal(by="grid")
        raise SearchError(f"all {self.size} points of the grid have been proposed")

    def _index(self, settings: Point) -> int | None:
        """Where a point is in the grid; none where it is not there."""
        for end, block in zip(self._ends, self._blocks, strict=True):
            if (index := block.index(settings)) is not None:
                return end - block.size + index
        return None


class _Order:
    """The numbers below a size, each once, in random order; a shuffle that holds only what it has
    moved, because a grid may have more points than fit into memory.

    Args:
        size: how many.
        seed: of the order.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._next = size, 0
        self._chance = random.Random(seed)
        self._moved: dict[int, int] = {}

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self._next == self._size:
            raise StopIteration
        drawn = self._chance.randrange(self._next, self._size)
        found = self._moved.get(drawn, drawn)
        self._moved[drawn] = self._moved.pop(self._next, self._next)
        self._next += 1
        return found


def _first_value(choice: Point, name: str, field: BaseDistribution) -> Any:
    """What is chosen, else any value."""
    return choice[name] if name in choice else value_at(field, 0.0)


def _values(field: BaseDistribution, steps: int) -> tuple[Any, ...]:
    """The values of a field on the grid."""
    if isinstance(field, CategoricalDistribution):
        return field.choices
    assert isinstance(field, FloatDistribution | IntDistribution)
    low, high = field.low, field.high
    values = []
    for place in range(1, steps - 1):
        value = on_scale(low, high, place / (steps - 1), log=field.log)
        whole = isinstance(field, IntDistribution)
        value = round(value) if whole else float(f"{value:.{_DIGITS}g}")
        values.append(min(max(value, low), high))
    return tuple(dict.fromkeys([low, *values, high]))


def _equal(one: Any, other: Any) -> bool:
    """Whether two values of a field are the same; published ones are not rounded."""
    if one is None or isinstance(one, bool) or isinstance(other, bool) or isinstance(one, str):
        return one is other or (one == other and type(one) is type(other))
    return isinstance(other, int | float) and math.isclose(one, other, rel_tol=10.0**-_DIGITS)


def capped(experiment: Experiment, space: Space) -> Experiment:
    """An experiment with no more trials than its grid has, with the first ones; one without a grid
    stays as it is."""
    search = experiment.search
    if search.sampler != "grid":
        return experiment
    whole = len(space.first_points()) + Grid(space, steps=search.grid_steps, seed=0).left
    search = search.model_copy(update={"trials": min(search.trials, whole)})
    return experiment.model_copy(update={"search": search})
