"""Settings that did well in earlier searches, on whatever data, as first trials of a new one."""

from collections.abc import Iterator
from itertools import zip_longest

from search.errors import KdsearchError, Problem
from search.experiment.schema import Experiment
from search.experiment.search_config import PriorPoint
from search.experiment.searched import Option
from search.experiment.space.fields import NumberField, SearchedField, exists
from search.experiment.space.point import (
    SLOT,
    STUDENT,
    TEACHER,
    Point,
    is_number,
    is_same,
    plain_name,
    settings_of,
    slot,
)
from search.experiment.space.space import Space
from search.leaderboard.ranking import rank
from search.record.files import read_record
from search.record.record import SearchRecord
from search.record.storage import Storage

# Of the trials of a search; its sampler has to learn of its own task.
_SHARE = 1 / 4


def prior_points(
    experiment: Experiment, storage: Storage, space: Space
) -> tuple[tuple[PriorPoint, ...], list[Problem]]:
    """The points that `search.prior` stands for, and what is wrong with it.

    Each earlier search gives the best trial of each choice of methods, the best first; several take
    turns. What a trial has beside this space is left out: a value beyond a range becomes its end,
    an option that is not there the published one. Points that run anyway are none of them, and
    together they are at most a quarter of the trials.

    Args:
        experiment: whose `search.prior` has names of searches, or, from a record, points.
        storage: where those searches are kept.
        space: of the new search.
    """
    prior = experiment.search.prior
    found = tuple(each for each in prior if isinstance(each, PriorPoint))
    problems, earlier = [], []
    for number, name in enumerate(prior):
        if isinstance(name, PriorPoint):
            continue
        try:
            record = read_record(storage, name)
        except KdsearchError as error:
            problems.append(Problem(key=f"search.prior.{number}", message=str(error)))
            continue
        points = list(_best(record, space))
        if not points:
            message = f"{name!r} has no trial whose methods are candidates here; leave it out"
            problems.append(Problem(key=f"search.prior.{number}", message=message))
        earlier.append(points)
    known = set(map(settings_of, space.first_points()))
    for turn in zip_longest(*earlier):
        for each in turn:
            if each is not None and settings_of(each.point) not in known:
                known.add(settings_of(each.point))
                found += (each,)
    if earlier:
        found = found[: max(1, round(experiment.search.trials * _SHARE))]
    return found, problems


def _best(record: SearchRecord, space: Space) -> Iterator[PriorPoint]:
    """The best trial of each choice of methods, as a point of the space."""
    methods = set()
    for place, trial in enumerate(rank(record.trials), start=1):
        if trial.is_control or trial.score is None or trial.methods in methods:
            continue
        point = _fitting(trial.point, space)
        if point is not None:
            methods.add(trial.methods)
            of = f"{record.name}, trial {trial.number}, rank {place} of {len(record.trials)}"
            yield PriorPoint(place=of, point=point)


def _fitting(point: Point, space: Space) -> Point | None:
    """A point as this space has it; none where a method is no candidate, or one too many."""
    student = point.get(STUDENT)
    student = student if student in space.students else space.students[0]
    teacher = point.get(TEACHER)
    teacher = teacher if teacher in space.teachers else space.teachers[0]
    if sum(key.startswith(SLOT) for key in point) > len(space.slots):
        return None
    fitting: Point = {STUDENT: student} if len(space.students) > 1 else {}
    fitting |= {TEACHER: teacher} if len(space.teachers) > 1 else {}
    values = {plain_name(key): value for key, value in point.items()}
    fields = [*space.shared]
    for number, candidates in enumerate(space.slots, start=1):
        method = point.get(slot(number))
        if method not in candidates:
            return None
        fitting[slot(number)] = method
        fields += space.fields[student, teacher, method]
    for field in fields:
        if exists(field, fitting):
            value = values.get(plain_name(field.name), field.published)
            fitting[field.name] = _within(field, value)
    return fitting


def _within(field: SearchedField, value: Option) -> Option:
    """A value that the field takes, as near to another one as may be."""
    if isinstance(field, NumberField):
        if not is_number(value):
            return field.published
        near = min(max(value, field.low), field.high)
        return round(near) if field.integer else float(near)
    return next((each for each in field.options if is_same(each, value)), field.published)
