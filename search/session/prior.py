"""Settings that did well elsewhere, on whatever data, as first trials of a new search."""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path

from search.errors import KdsearchError, Problem
from search.experiment.schema import CONTROL, Experiment
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

CATALOGUE = "catalogue"
"""The name, in `search.prior`, of what did well in searches of the whole catalogue."""

_CATALOGUE_FILE = Path(__file__).with_name("catalogue_prior.json")


def prior_points(
    experiment: Experiment, storage: Storage, space: Space
) -> tuple[tuple[PriorPoint, ...], list[Problem]]:
    """The points that `search.prior` stands for, and what is wrong with it.

    Each earlier search gives the best trial of each choice of methods, the best first; several take
    turns; `catalogue` stands for the searches that come with kdsearch. What a trial has beside this
    space is left out: a value beyond a range becomes its end, an option that is not there the
    published one. Points that run anyway are none of them, and together they are at most a quarter
    of the trials.

    Args:
        experiment: whose `search.prior` has names, or, from a record, points.
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
            searches = catalogue() if name == CATALOGUE else [best(read_record(storage, name))]
        except KdsearchError as error:
            meant = get_close_matches(name, [CATALOGUE])
            hint = f"; {CATALOGUE!r} is what comes with kdsearch" if meant else ""
            problems.append(Problem(key=f"search.prior.{number}", message=f"{error}{hint}"))
            continue
        points = [list(_fitting(each, space)) for each in searches]
        if not any(points):
            message = f"{name!r} has no trial whose methods are candidates here; leave it out"
            problems.append(Problem(key=f"search.prior.{number}", message=message))
        earlier += points
    known = set(map(settings_of, space.first_points()))
    for turn in zip_longest(*earlier):
        for each in turn:
            if each is not None and settings_of(each.point) not in known:
                known.add(settings_of(each.point))
                found += (each,)
    if earlier:
        found = found[: max(1, round(experiment.search.trials * _SHARE))]
    return found, problems


def best(record: SearchRecord) -> list[PriorPoint]:
    """The best trial of each choice of methods, the best first; no control."""
    methods, found = set(), []
    for place, trial in enumerate(rank(record.trials), start=1):
        if not trial.is_control and trial.score is not None and trial.methods not in methods:
            methods.add(trial.methods)
            of = f"{record.name}, trial {trial.number}, rank {place} of {len(record.trials)}"
            found.append(PriorPoint(place=of, point=trial.point))
    return found


def catalogue() -> list[list[PriorPoint]]:
    """The same of searches of the whole catalogue, which come with kdsearch."""
    searches = json.loads(_CATALOGUE_FILE.read_text(encoding="utf-8"))
    return [[PriorPoint.model_validate(each) for each in points] for points in searches]


def write_catalogue(searches: Sequence[SearchRecord]) -> None:
    """Makes that of such searches; `python -m tests.benchmarks.curves` runs them."""
    content = [[each.model_dump(mode="json") for each in best(record)] for record in searches]
    _CATALOGUE_FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _fitting(earlier: Sequence[PriorPoint], space: Space) -> Iterator[PriorPoint]:
    """Of earlier points those whose methods are candidates here, as this space has them."""
    for each in earlier:
        point = _fitted(each.point, space)
        if point is not None:
            yield PriorPoint(place=each.place, point=point)


def _fitted(point: Mapping[str, Option], space: Space) -> Point | None:
    """A point as this space has it, with each method in the first slot that has it; none where one
    has no slot, or a slot no method."""
    student = point.get(STUDENT)
    student = student if student in space.students else space.students[0]
    teacher = point.get(TEACHER)
    teacher = teacher if teacher in space.teachers else space.teachers[0]
    methods = [value for key, value in point.items() if key.startswith(SLOT) and value != CONTROL]
    fitting: Point = {STUDENT: student} if len(space.students) > 1 else {}
    fitting |= {TEACHER: teacher} if len(space.teachers) > 1 else {}
    values = {plain_name(key): value for key, value in point.items()}
    fields = [*space.shared]
    for number, candidates in enumerate(space.slots, start=1):
        method = next((each for each in methods if each in candidates), CONTROL)
        if method not in candidates:
            return None
        if method != CONTROL:
            methods.remove(method)
        fitting[slot(number)] = method
        fields += space.fields[student, teacher, method]
    if methods:
        return None
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
