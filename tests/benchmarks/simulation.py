"""Whole searches, simulated on a table of learning curves.

A trial's curve, and its seconds, are those of the table's trial of the same methods whose settings
are nearest to what was proposed.
"""

import heapq
import json
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet

from kdcore.distillation.distill import network_pair
from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment
from search.experiment.space.derivation import derive_space
from search.experiment.space.fields import NumberField, SearchedField
from search.experiment.space.point import Point, slot
from search.experiment.space.space import Space
from tests.benchmarks.throughput import synthetic

MOMENTS = 200  # of a budget, at which regret is looked at
PART = 2 / 3  # of the table, that a search has


@dataclass(frozen=True)
class Entry:
    """A trial of the table: its settings, curve, seconds of an epoch, and epochs on top."""

    point: Point
    accuracies: tuple[float, ...]
    epoch_seconds: float
    on_top: int

    def is_whole(self, epochs: int) -> bool:
        """Whether it came to its end."""
        return len(self.accuracies) == epochs + self.on_top


def _best(entries: Iterable[Entry], epochs: int) -> float:
    return max(max(each.accuracies) for each in entries if each.is_whole(epochs))


class Table:
    """The trials of a pair.

    Args:
        experiment: that they are of.
        entries: in the order of their numbers.

    Attributes:
        space: of the search.
        epochs: of a whole trial.
        best: the highest accuracy of all.
        trial_seconds: mean of the whole trials.
    """

    def __init__(self, experiment: Experiment, entries: Sequence[Entry]) -> None:
        student, teacher = experiment.pairs[0]
        pair = network_pair(student, teacher, synthetic(2))
        self.experiment = experiment
        self.space: Space = derive_space(experiment, {(student, teacher): pair}, "")
        self.epochs = experiment.training.epochs
        self.best = _best(entries, self.epochs)
        seconds = [
            len(each.accuracies) * each.epoch_seconds
            for each in entries
            if each.is_whole(self.epochs)
        ]
        self.trial_seconds = float(np.mean(seconds))
        self._pair = student, teacher
        self._by_methods: dict[str, list[Entry]] = {}
        for each in entries:
            self._by_methods.setdefault(each.point[slot(1)], []).append(each)

    def part(self, seed: int) -> "Table":
        """A part of it, by chance, with at least one trial of each method."""
        chance, part = random.Random(seed), copy(self)
        part._by_methods = {
            method: [each for each in all_of_it if chance.random() < PART]
            or [chance.choice(all_of_it)]
            for method, all_of_it in self._by_methods.items()
        }
        kept = chain.from_iterable(part._by_methods.values())
        part.best = _best(kept, self.epochs)
        return part

    def at(self, point: Point, had: Container[int] = ()) -> Entry:
        """The trial of the same method whose settings are nearest; of the controls too.

        Args:
            point: the settings.
            had: trials, by `id`, that are taken only where the method has no others.
        """
        method = point[slot(1)]
        fields = (*self.space.shared, *self.space.fields.get((*self._pair, method), ()))

        def distance(entry: Entry) -> tuple[bool, float]:
            return id(entry) in had, sum(_distance(each, point, entry.point) for each in fields)

        return min(self._by_methods[method], key=distance)


def _distance(field: SearchedField, one: Point, other: Point) -> float:
    """Squared, as a share of the field's range; 1 between options."""
    mine, theirs = one.get(field.name), other.get(field.name)
    if mine is None or theirs is None or not isinstance(field, NumberField):
        return float(mine != theirs)
    low, high = field.low, field.high
    if field.log:
        low, high, mine, theirs = (math.log(each) for each in (low, high, mine, theirs))
    return float(((mine - theirs) / (high - low)) ** 2)


@cache
def tables(path: Path) -> dict[str, Table]:
    """By pair, what a file holds."""
    content = parquet.read_table(path)
    experiments = json.loads(content.schema.metadata[b"kdsearch"])["experiments"]
    entries: dict[str, list[Entry]] = {pair: [] for pair in experiments}
    for row in content.to_pylist():
        if row["accuracies"]:
            entry = Entry(
                json.loads(row["point"]),
                tuple(row["accuracies"]),
                row["epoch_seconds"],
                row["epochs_on_top"],
            )
            entries[row["pair"]].append(entry)
    return {
        pair: Table(parse_experiment(experiment, "table"), entries[pair])
        for pair, experiment in experiments.items()
    }


class Searcher(ABC):
    """Proposes points, and decides after each epoch whether a trial goes on."""

    @abstractmethod
    def start(self, trial: int) -> Point:
        """What a trial is."""

    @abstractmethod
    def goes_on(self, trial: int, epoch: int, best: float, accuracy: float) -> bool:
        """Whether it does after an epoch, from 1, without those on top."""

    @abstractmethod
    def end(self, trial: int, epochs: int, best: float) -> None:
        """A trial has ended, by itself or not, after so many epochs with those on top."""


def regrets(
    table: Table, searcher: Searcher, *, budget: int, slots: int
) -> tuple[NDArray[np.float64], int]:
    """Percentage points of regret at each moment of the budget, and how many trials began."""
    end = budget * table.trial_seconds / slots
    trials: dict[int, tuple[Entry, list[float]]] = {}
    ran: dict[int, int] = {}
    had: set[int] = set()
    reports: list[tuple[float, int]] = []  # when the next epoch ends, and of which trial

    def begin(now: float) -> None:
        trial = len(trials)
        entry = table.at(searcher.start(trial), had)
        had.add(id(entry))
        trials[trial] = entry, list(accumulate(entry.accuracies, max))
        ran[trial] = 0
        heapq.heappush(reports, (now + entry.epoch_seconds, trial))

    seen: list[tuple[float, float]] = [(0.0, 0.0)]  # since when, the best accuracy
    for _ in range(slots):
        begin(0.0)
    while reports:
        now, trial = heapq.heappop(reports)
        if now > end:
            break
        entry, bests = trials[trial]
        ran[trial] = done = ran[trial] + 1
        best, judged = bests[done - 1], done - entry.on_top
        if best > seen[-1][1]:
            seen.append((now, best))
        goes_on = judged < 1 or searcher.goes_on(trial, judged, best, entry.accuracies[done - 1])
        if done < len(bests) and goes_on:
            heapq.heappush(reports, (now + entry.epoch_seconds, trial))
        else:
            searcher.end(trial, done, best)
            begin(now)
    times, bests_seen = (np.array(each) for each in zip(*seen, strict=True))
    moments = np.linspace(0, end, MOMENTS + 1)[1:]
    known = bests_seen[np.searchsorted(times, moments, side="right") - 1]
    return 100 * (table.best - known), len(trials)
