"""The search space, derived from the catalogue's declarations; it names no method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from pydantic import ValidationError

from kdcore import Recipe, TermConfig, TrialConfig
from kdcore.layers import layer_options, resolve_layers
from kdcore.methods import CATALOGUE
from kdcore.span import Choice, LayerChoice, Span
from kdcore.suggestion import did_you_mean
from kdcore.taps import Setting
from search.experiment import (
    CONTROL,
    Experiment,
    ExperimentError,
    Option,
    Problem,
    SearchedRange,
)

STUDENT = "student"
LEARNING_RATE = "training.learning_rate"
IS_CONTROL = "control"
NUMBER = "trial"

Point = dict[str, Any]
"""A trial's choices: `objective.1` (a method), `kd.temperature`, `training.learning_rate`,
`student` where several may learn, and `fitnet.layers.2` for a choice that only the second of them
has. A trial that runs also has its number, `trial`."""


@dataclass(frozen=True)
class NumberField:
    """A searched number.

    Args:
        name: like `kd.temperature`.
        low: the smallest value.
        high: the largest value, itself included.
        log: sampled evenly in the logarithm.
        integer: only whole numbers.
        published: the value of the first trial, within the range.
    """

    name: str
    low: float
    high: float
    log: bool
    integer: bool
    published: float

    def suggest(self, trial: optuna.trial.BaseTrial) -> Option:
        if self.integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        scale = ", logarithmic" if self.log else ""
        return f"{self.low:g} to {self.high:g}{scale}"


@dataclass(frozen=True)
class ChoiceField:
    """A searched choice; `published` is the option of the first trial, and `layers` tells whether
    it is a choice of layers."""

    name: str
    options: tuple[Option, ...]
    published: Option
    layers: bool = False

    def suggest(self, trial: optuna.trial.BaseTrial) -> Option:
        chosen = trial.suggest_categorical(self.name, self.options)
        assert chosen is not None
        return chosen

    def __str__(self) -> str:
        return ", ".join(map(str, self.options))


SearchedField = NumberField | ChoiceField


@dataclass(frozen=True)
class Space:
    """What a search chooses from. A call proposes a point; a method's fields exist only with it.

    Args:
        students: the networks that may learn.
        slots: the candidate methods of each slot.
        fields: by student and method, the searched fields.
        shared: fields that every trial has, whatever its student and methods.
        combinations: methods that are also tried together at the start.
    """

    students: tuple[str, ...]
    slots: tuple[tuple[str, ...], ...]
    fields: Mapping[tuple[str, str], tuple[SearchedField, ...]]
    shared: tuple[SearchedField, ...]
    combinations: tuple[tuple[str, ...], ...] = ()

    def __call__(self, trial: optuna.trial.BaseTrial) -> Point | None:
        """Optuna's define-by-run function. The study's first trials are the students' controls."""
        student = self.students[0]
        if len(self.students) > 1:
            student = trial.suggest_categorical(STUDENT, self.students)
        for field in self.shared:
            field.suggest(trial)
        if trial.number < len(self.students):
            return self._control()
        for number, candidates in enumerate(self.slots, start=1):
            method = trial.suggest_categorical(_slot(number), self._sampled(candidates))
            for field in self.fields[student, method]:
                field.suggest(trial)
        return None

    def _control(self) -> Point:
        return {IS_CONTROL: True} | {
            _slot(number): CONTROL for number in range(1, len(self.slots) + 1)
        }

    def _sampled(self, candidates: tuple[str, ...]) -> tuple[str, ...]:
        """The controls run anyway; where they could only come again with equal settings, they are
        not sampled."""
        if len(self.slots) > 1 or self.shared:
            return candidates
        return tuple(name for name in candidates if name != CONTROL)

    def first_points(self) -> list[Point]:
        """The trials that every search begins with: each student's control, then, with the first
        student, each candidate as published, beside the control's choice (else the first candidate)
        in the other slots, and the combinations."""
        shared: Point = {field.name: field.published for field in self.shared}
        points = [shared]
        if len(self.students) > 1:
            points = [{STUDENT: student} | shared for student in self.students]
            shared = points[0]
        alone = [(method,) for candidates in self.slots for method in candidates]
        for methods in (*alone, *self.combinations):
            chosen = [
                next((name for name in methods if name in candidates), None)
                or (CONTROL if CONTROL in candidates else candidates[0])
                for candidates in self.slots
            ]
            if set(chosen) == {CONTROL}:
                continue
            point: Point = {_slot(i): name for i, name in enumerate(chosen, start=1)}
            for name in chosen:
                fields = self.fields[self.students[0], name]
                point |= {field.name: field.published for field in fields}
            if shared | point not in points:
                points.append(shared | point)
        return points

    def rehearsed_points(self) -> list[Point]:
        """For the first student, each candidate as published with each of its choices of layers."""
        points: list[Point] = []
        for point in self.first_points()[len(self.students) :]:
            points.append(point)
            for method in {value for key, value in point.items() if key.startswith(_SLOT)}:
                for field in self.fields[self.students[0], method]:
                    if isinstance(field, ChoiceField) and field.layers:
                        points += [point | {field.name: option} for option in field.options]
        return points

    def describe(self) -> list[tuple[str, str]]:
        """Name and range of everything that is searched."""
        slots = [
            (_slot(number), ", ".join(candidates))
            for number, candidates in enumerate(self.slots, start=1)
        ]
        if len(self.students) > 1:
            slots.insert(0, (STUDENT, ", ".join(self.students)))
        fields = [field for of_method in self.fields.values() for field in of_method]
        named = {field.name: str(field) for field in (*self.shared, *fields)}
        return slots + list(named.items())


_SLOT = "objective."


def _slot(number: int) -> str:
    return f"{_SLOT}{number}"


def plain_name(key: str) -> str:
    """The name of a point's setting, without the number of the student that alone has the choice.

    `fitnet.layers.2` is `fitnet.layers`.
    """
    head, _, last = key.rpartition(".")
    return head if "." in head and last.isdigit() else key


def is_number(value: Option) -> bool:
    """Whether a setting is a number; yes and no are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_logarithmic(experiment: Experiment, name: str) -> bool:
    """Whether a setting is searched in its logarithm; `name` is a plain one."""
    rate = experiment.training.learning_rate
    if name == LEARNING_RATE:
        return isinstance(rate, SearchedRange) and rate.log
    method, _, field = name.partition(".")
    if method not in CATALOGUE:
        return False
    mark = CATALOGUE[method].Params.searched().get(field)
    return isinstance(mark, Span) and mark.log


def published_trials(experiment: Experiment) -> range:
    """The numbers of the trials with published settings; they follow the controls."""
    students = experiment.students
    methods = {name for slot in experiment.objective for name in slot}
    fields = {(student, name): () for student in students for name in methods}
    space = Space(students, experiment.objective, fields, (), experiment.search.combinations)
    return range(len(students), len(space.first_points()))


def with_published(point: Point, method: str) -> Point:
    """The same student and recipe, with one method as published and no other."""
    slots = sorted(key for key in point if key.startswith(_SLOT))
    kept = {key: value for key, value in point.items() if key in (STUDENT, LEARNING_RATE)}
    return kept | dict.fromkeys(slots, CONTROL) | {slots[0]: method}


def trial_config(experiment: Experiment, point: Point) -> TrialConfig:
    """The trial that a point stands for."""
    terms = []
    for number in range(1, len(experiment.objective) + 1):
        method = point[_slot(number)]
        if method != CONTROL:
            prefix = f"{method}."
            params = {
                plain_name(key).removeprefix(prefix): value
                for key, value in point.items()
                if key.startswith(prefix)
            }
            terms.append(TermConfig.model_validate({"method": method, "params": params}))
    recipe = experiment.training.model_dump()
    if LEARNING_RATE in point:
        recipe["learning_rate"] = point[LEARNING_RATE]
    return TrialConfig(
        data=experiment.data,
        teacher=experiment.teacher,
        student=point.get(STUDENT, experiment.students[0]),
        objective=tuple(terms),
        training=Recipe.model_validate(recipe),
        seed=experiment.seed,
        cache=experiment.cache,
    )


def derive_space(experiment: Experiment, settings: Mapping[str, Setting], source: str) -> Space:
    """Derives the space from the candidates' declarations, narrowed as the experiment says.

    Args:
        experiment: names the candidates and narrows their fields.
        settings: by student, with the teacher; the layer choices follow from it.
        source: the experiment's file, for messages.

    Raises:
        ExperimentError: `narrow` names something that is not searched, or a value that is not
            legal.
    """
    methods = list(dict.fromkeys(name for slot in experiment.objective for name in slot))
    problems = _wrong_names(experiment, methods)
    fields: dict[tuple[str, str], tuple[SearchedField, ...]] = {}
    for method in methods:
        of_students = []
        for student in experiment.students:
            of_method, wrong = _narrowed_fields(method, settings[student], experiment.narrow)
            of_students.append(of_method)
            problems += [problem for problem in wrong if problem not in problems]
        for number, student in enumerate(experiment.students, start=1):
            fields[student, method] = tuple(
                field
                if all(other.get(name) == field for other in of_students)
                else replace(field, name=f"{name}.{number}")
                for name, field in of_students[number - 1].items()
            )
    if problems:
        raise ExperimentError(source, problems)
    shared: tuple[SearchedField, ...] = ()
    rate = experiment.training.learning_rate
    if isinstance(rate, SearchedRange):
        shared = (NumberField(LEARNING_RATE, rate.low, rate.high, rate.log, False, rate.middle),)
    return Space(
        experiment.students, experiment.objective, fields, shared, experiment.search.combinations
    )


def _wrong_names(experiment: Experiment, methods: Sequence[str]) -> list[Problem]:
    """Names in `narrow` and `combinations` that no candidate has."""
    problems: list[Problem] = []
    known = [f"{name}.{field}" for name in methods for field in CATALOGUE[name].Params.model_fields]
    for key in experiment.narrow:
        if key not in known:
            hint = f"{did_you_mean(key, known)} Known are: {', '.join(known)}"
            message = f"{key!r} is no setting of a candidate{hint}"
            problems.append(Problem(key=f"narrow.{key}", message=message))
    for number, combination in enumerate(experiment.search.combinations):
        slots = [i for name in combination for i, s in enumerate(experiment.objective) if name in s]
        if len(set(slots)) < len(combination) or len(slots) != len(combination):
            message = f"{list(combination)} must be candidates of different slots"
            problems.append(Problem(key=f"search.combinations.{number}", message=message))
    return problems


def _narrowed_fields(
    method: str, setting: Setting, narrow: Mapping[str, Sequence[Option]]
) -> tuple[dict[str, SearchedField], list[Problem]]:
    """A method's searched fields by name, with the user's values; and what is wrong with these."""
    try:
        fields = _fields(method, setting)
    except ValueError as error:
        message = f"{method} cannot teach {setting.student.network}: {error}"
        return {}, [Problem(key="objective", message=message)]
    problems = []
    for name in CATALOGUE[method].Params.model_fields:
        key = f"{method}.{name}"
        if key in narrow:
            try:
                fields[key] = _narrow(method, name, fields.get(key), narrow[key], setting)
            except ValueError as error:
                problems.append(Problem(key=f"narrow.{key}", message=str(error)))
    return fields, problems


def _fields(method: str, setting: Setting) -> dict[str, SearchedField]:
    """A method's searched fields by name."""
    params = CATALOGUE[method].Params
    published = params()
    fields: dict[str, SearchedField] = {}
    for name, mark in params.searched().items():
        value = getattr(published, name)
        key = f"{method}.{name}"
        match mark:
            case Span():
                integer = params.model_fields[name].annotation is int
                fields[key] = NumberField(key, mark.low, mark.high, mark.log, integer, value)
            case Choice():
                fields[key] = ChoiceField(key, mark.options, value)
            case LayerChoice():
                options = layer_options(setting.student, setting.teacher)
                if value not in options:  # a word like `middle`: the pair that it stands for here
                    (pair,) = resolve_layers(value, setting.student, setting.teacher)
                    value = str(pair)
                fields[key] = ChoiceField(key, options, value, layers=True)
    return fields


def _narrow(
    method: str,
    name: str,
    field: SearchedField | None,
    values: Sequence[Option],
    setting: Setting,
) -> SearchedField:
    """A field with the user's values: a smaller range, fewer options, or one value that is fixed.

    A setting that is not searched by itself may be fixed, or given options.
    """
    key = f"{method}.{name}"
    params = CATALOGUE[method].Params
    legal = []
    for value in values:
        try:
            legal.append(getattr(params.model_validate({name: value}), name))
        except ValidationError as error:
            rule = error.errors()[0]["msg"]
            raise ValueError(f"{value!r} is not legal: {rule}") from None
        if isinstance(params.searched().get(name), LayerChoice):
            resolve_layers(legal[-1], setting.student, setting.teacher)
    if isinstance(field, NumberField) and len(legal) != 1:
        if len(legal) != 2 or not legal[0] < legal[1]:
            raise ValueError(f"is {list(values)}, but must be [low, high] with low < high")
        low, high = legal
        if field.log and low <= 0:
            raise ValueError(f"low is {low}, but the field is searched in its logarithm: low > 0")
        published = min(max(field.published, low), high)
        return NumberField(key, low, high, field.log, field.integer, published)
    if not legal or len(set(legal)) < len(legal):
        raise ValueError(f"is {list(values)}, but must be one or more different values")
    published = field.published if field else getattr(params(), name)
    layers = isinstance(params.searched().get(name), LayerChoice)
    return ChoiceField(key, tuple(legal), published if published in legal else legal[0], layers)
