"""The points that a user asks for by plain names, as points of the space."""

from collections.abc import Mapping

from kdcore.errors import ConfigError, did_you_mean
from search.errors import Problem
from search.experiment.schema import CONTROL, Experiment
from search.experiment.searched import Option
from search.experiment.space.fields import ChoiceField, SearchedField, beside_in_words, exists
from search.experiment.space.point import (
    STUDENT,
    TEACHER,
    Point,
    is_number,
    is_same,
    option_in_words,
    plain_name,
    settings_of,
    short_name,
    slot,
)
from search.experiment.space.space import Space

METHOD = "method"
"""The plain name of a point's methods, like `kd` or `kd + at`."""


def asked_points(experiment: Experiment, space: Space) -> tuple[tuple[Point, ...], list[Problem]]:
    """The points of `search.points`, and what is wrong with them.

    Args:
        experiment: asks for them.
        space: that they must lie in.
    """
    points: list[Point] = []
    problems = []
    controls = space.first_points()[: len(space.students)]
    places = dict.fromkeys(map(settings_of, controls), "the control, which runs anyway")
    for asked in experiment.search.points:
        try:
            point = _point(asked.values, space)
            if (known := places.get(settings_of(point))) is not None:
                raise ConfigError(f"is the same as {known}; leave it out")
            points.append(point)
            places[settings_of(point)] = asked.place
        except ConfigError as error:
            problems.append(Problem(key="search.points", message=f"{asked.place}: {error}"))
    return tuple(points), problems


def points_caution(experiment: Experiment) -> list[str]:
    """Points that there are too few trials for."""
    search = experiment.search
    needed = len(experiment.students) + len(search.points)
    if not search.points or needed <= search.trials:
        return []
    return [
        f"search.trials is {search.trials}, but controls and search.points are {needed}: the last "
        f"points do not run, until kdsearch resume NAME --more-trials N"
    ]


def _point(asked: Mapping[str, Option], space: Space) -> Point:
    """A point of the space; settings that are not named have their published values.

    Raises:
        ConfigError: it names something that is not there, or has a value out of the space.
    """
    values = dict(asked)
    student = str(values.pop(STUDENT, space.students[0]))
    if student not in space.students:
        raise ConfigError(
            f"student is {student!r}, but must be one of {', '.join(space.students)}"
            f"{did_you_mean(student, space.students)}"
        )
    methods = _methods(values.pop(METHOD, None), space)
    point: Point = {STUDENT: student} if len(space.students) > 1 else {}
    point |= {slot(number): name for number, name in enumerate(methods, start=1)}
    taught = set(methods) != {CONTROL}
    teacher = space.teachers[0]
    if taught:
        teacher = str(values.pop(TEACHER, teacher))
        if teacher not in space.teachers:
            raise ConfigError(
                f"teacher is {teacher!r}, but must be one of {', '.join(space.teachers)}"
                f"{did_you_mean(teacher, space.teachers)}"
            )
        point |= {TEACHER: teacher} if len(space.teachers) > 1 else {}
    of_methods = [each for name in methods for each in space.fields[student, teacher, name]]
    known = [METHOD, *([STUDENT] if len(space.students) > 1 else [])]
    known += [TEACHER] if taught and len(space.teachers) > 1 else []
    known += dict.fromkeys(short_name(each.name) for each in space.shared)
    known += [plain_name(each.name) for each in of_methods]
    for each in (*space.shared, *of_methods):
        if exists(each, point):
            key = next((name for name in _names(each, space) if name in values), None)
            value = each.published if key is None else _value(key, each, values.pop(key))
            point[each.name] = value
    for key in values:
        without = [each for each in space.shared if key in _names(each, space)]
        if without and not exists(without[0], point):
            raise ConfigError(f"{key} is given, but exists {beside_in_words(without[0])} only")
        raise ConfigError(_unknown(key, known, methods, space))
    return point


def _names(field: SearchedField, space: Space) -> tuple[str, ...]:
    """What a user may call a field: as on the leaderboard, and of recipe and views as in the file:
    `learning_rate`, `training.learning_rate`."""
    plain = plain_name(field.name)
    return (short_name(plain), plain) if field in space.shared else (plain,)


def _methods(asked: Option | None, space: Space) -> list[str]:
    """The method of each slot; none is named of one without distillation."""
    candidates = [name for of_slot in space.slots for name in of_slot]
    known = f"The candidates are {', '.join(dict.fromkeys(candidates))}"
    if asked is None:
        raise ConfigError(f"{METHOD} is missing, like {METHOD}: {candidates[-1]}. {known}")
    names = [name.strip() for name in str(asked).split("+")]
    for name in names:
        if name not in (*candidates, CONTROL):
            raise ConfigError(
                f"{METHOD} is {asked!r}, but {name!r} is not a candidate"
                f"{did_you_mean(name, candidates)} {known}"
            )
    methods = []
    for number, of_slot in enumerate(space.slots, start=1):
        found = [name for name in names if name in of_slot and name != CONTROL]
        if len(found) > 1 or not (found or CONTROL in of_slot):
            raise ConfigError(
                f"{METHOD} is {asked!r}, but must name one of {', '.join(of_slot)}, which are the "
                f"candidates of {slot(number)}"
            )
        methods += found or [CONTROL]
    return methods


def _unknown(key: str, known: list[str], methods: list[str], space: Space) -> str:
    if key == TEACHER and len(space.teachers) > 1:
        return f"{key} is given, but {METHOD} is {CONTROL}, which needs none; leave it out"
    owner = key.partition(".")[0]
    if owner not in methods and any(owner in of_slot for of_slot in space.slots):
        chosen = " + ".join(name for name in methods if name != CONTROL) or CONTROL
        return f"{key} is given, but {METHOD} is {chosen}; leave it out"
    return (
        f"unknown key {key!r}{did_you_mean(key, known)} Known here: {', '.join(known)}; "
        f"others are not searched"
    )


def _value(key: str, field: SearchedField, value: Option) -> Option:
    """A value as the field has it.

    Raises:
        ConfigError: the field does not take it.
    """
    if isinstance(field, ChoiceField):
        for option in field.options:
            if is_same(option, value) or (option is None and value == option_in_words(None)):
                return option
    elif is_number(value) and field.takes(value) and not (field.integer and value != int(value)):
        return int(value) if field.integer else float(value)
    whole = ", whole" if not isinstance(field, ChoiceField) and field.integer else ""
    raise ConfigError(f"{key} is {value!r}, but the search takes {field}{whole}")
