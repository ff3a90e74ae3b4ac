"""What a trial promised when it was proposed, by those whose settings are nearest to its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.experiment.schema import Experiment
from search.experiment.searched import Option
from search.experiment.space.point import is_number, plain_name, settings_of
from search.experiment.space.space import is_logarithmic
from search.leaderboard.ranking import rank
from search.record.record import SearchRecord, TrialRecord, place

_NEIGHBOURS = 3


@dataclass(frozen=True)
class Expectation:
    """Places, from 1, among the trials that were proposed earlier, by what is known now; where the
    front is sought, among those of the same student.

    Args:
        of: number of those trials, without controls and what has no result.
        neighbours: the nearest ones by their settings, and their places; nearest first.
        came: the trial's own place; none before its first report.
    """

    of: int
    neighbours: tuple[tuple[int, int], ...]
    came: int | None

    @property
    def place(self) -> float:
        """The place that was to be expected: the mean of the neighbours'."""
        return sum(place for _, place in self.neighbours) / len(self.neighbours)


def expectation(record: SearchRecord, trial: TrialRecord) -> Expectation | None:
    """What was to be expected of a trial; none where fewer than three trials before it had its
    student and methods.

    No sampler's own model is asked: a GP, CMA-ES and TPE have no common measure of what they hope
    for, and this one holds for all of them.
    """
    of_it = record.experiment.search.goal == "pareto"
    earlier = [
        each
        for each in rank(record.trials)
        if each.number < trial.number and not each.is_control and each.score is not None
        if each.student == trial.student or not of_it
    ]
    alike = [
        (number, each)
        for number, each in enumerate(earlier, start=1)
        if (each.student, each.methods) == (trial.student, trial.methods)
    ]
    if len(alike) < _NEIGHBOURS:
        return None
    settings = [_settings(each) for _, each in alike]
    spans = _spans(record.experiment, [*settings, _settings(trial)])
    distances = [_distance(each, _settings(trial), spans) for each in settings]
    nearest = sorted(zip(distances, alike, strict=True), key=lambda found: found[0])
    better = sum(place(each) < place(trial) for each in earlier)
    return Expectation(
        of=len(earlier),
        neighbours=tuple((each.number, at) for _, (at, each) in nearest[:_NEIGHBOURS]),
        came=None if trial.score is None else better + 1,
    )


_Settings = Mapping[str, Option]


def _settings(trial: TrialRecord) -> _Settings:
    return {plain_name(key): value for key, value in settings_of(trial.point)}


def _spans(experiment: Experiment, points: Sequence[_Settings]) -> dict[str, tuple[bool, float]]:
    """By name, whether a number is compared in its logarithm, and how far its values lie apart."""
    values: dict[str, list[float]] = {}
    for point in points:
        for name, value in point.items():
            if is_number(value):
                values.setdefault(name, []).append(value)
    spans = {}
    for name, known in values.items():
        log = is_logarithmic(experiment, name) and min(known) > 0
        spans[name] = log, _between(max(known), min(known), log)
    return spans


def _between(one: float, other: float, log: bool) -> float:
    return abs(math.log(one / other) if log else one - other)


def _distance(one: _Settings, other: _Settings, spans: Mapping[str, tuple[bool, float]]) -> float:
    """The squared distance of two points: of each number as a share of its span, and 1 for each
    choice that differs or that only one of them has."""
    total = 0.0
    for name in one.keys() | other.keys():
        mine, theirs = one.get(name), other.get(name)
        if is_number(mine) and is_number(theirs) and name in spans:
            log, span = spans[name]
            total += (_between(mine, theirs, log) / span) ** 2 if span else 0.0
        else:
            total += mine != theirs
    return total
