"""The space of a search: what Optuna is asked for, and the points that come first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

from kdcore.contract.published import Published
from kdcore.contract.searched import Span
from kdcore.methods import CATALOGUE
from search.experiment.schema import CONTROL, Experiment
from search.experiment.space.fields import ChoiceField, NumberField, SearchedField, exists
from search.experiment.space.point import (
    IS_CONTROL,
    SLOT,
    STUDENT,
    TEACHER,
    Point,
    plain_name,
    settings_of,
    slot,
)
from search.experiment.space.published import accompanied
from search.experiment.space.shared import shared_fields

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, order=True)
class Dimensions:
    """How many things are chosen; ordered by their number in all.

    Args:
        numbers: from ranges.
        choices: from lists.
    """

    together: int = field(init=False)
    numbers: int
    choices: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "together", self.numbers + self.choices)

    def __add__(self, other: "Dimensions") -> "Dimensions":
        return Dimensions(self.numbers + other.numbers, self.choices + other.choices)

    def __str__(self) -> str:
        return (
            f"{self.together} dimension{'' if self.together == 1 else 's'} ({self.numbers} "
            f"number{'' if self.numbers == 1 else 's'}, {self.choices} "
            f"choice{'' if self.choices == 1 else 's'})"
        )


def _dimensions(fields: Iterable[SearchedField]) -> Dimensions:
    """Those of fields that are not fixed."""
    kinds = [isinstance(each, NumberField) for each in fields if not _is_fixed(each)]
    return Dimensions(sum(kinds), len(kinds) - sum(kinds))


def _is_fixed(field: SearchedField) -> bool:
    return isinstance(field, ChoiceField) and len(field.options) == 1


@dataclass(frozen=True)
class Space:
    """What a search chooses from; the fields of a method exist only where it is chosen.

    Args:
        students: the networks that may learn.
        teachers: those that they may learn from; a control needs none.
        slots: the candidate methods of each slot.
        fields: by student, teacher and method, the searched fields.
        shared: fields that trials of every student and method have, those of recipe and views; a
            trial has one where it exists beside its others.
        combinations: methods that are also tried together at the start.
        accompanied: what is published of those that stand beside other methods there.
        asked: the points that a user asks for.
        prior: points that did well elsewhere, none of which runs anyway.
    """

    students: tuple[str, ...]
    teachers: tuple[str, ...]
    slots: tuple[tuple[str, ...], ...]
    fields: Mapping[tuple[str, str, str], tuple[SearchedField, ...]]
    shared: tuple[SearchedField, ...]
    combinations: tuple[tuple[str, ...], ...] = ()
    accompanied: Mapping[str, Published] = field(default_factory=dict)
    asked: tuple[Point, ...] = ()
    prior: tuple[Point, ...] = ()

    def propose(self, trial: "optuna.trial.BaseTrial", *, control: bool = False) -> Point:
        """A point from Optuna, whose trial is asked for the fields that its own choices bring.

        Args:
            trial: an Optuna trial.
            control: whether the student learns without a method.
        """
        student = self.students[0]
        if len(self.students) > 1:
            student = trial.suggest_categorical(STUDENT, self.students)
        for each in self.shared:
            if exists(each, trial.params):
                each.suggest(trial)
        if control:
            return trial.params | self._control()
        teacher = self.teachers[0] if len(self.teachers) == 1 else None
        for number, candidates in enumerate(self.slots, start=1):
            method = trial.suggest_categorical(slot(number), self._sampled(candidates))
            if method == CONTROL:
                continue
            if teacher is None:
                teacher = trial.suggest_categorical(TEACHER, self.teachers)
            for each in self.fields[student, teacher, method]:
                each.suggest(trial)
        return dict(trial.params)

    def _control(self) -> Point:
        return {IS_CONTROL: True} | {
            slot(number): CONTROL for number in range(1, len(self.slots) + 1)
        }

    def _sampled(self, candidates: tuple[str, ...]) -> tuple[str, ...]:
        """The controls run anyway; where they could only come again with equal settings, they are
        not sampled."""
        if len(self.slots) > 1 or self.shared:
            return candidates
        return tuple(name for name in candidates if name != CONTROL)

    def choices(self) -> list[Point]:
        """Each student and each teacher, where there are several, with each choice of methods that
        is sampled, and of what other fields need."""
        students: list[Point] = [{}]
        if len(self.students) > 1:
            students = [{STUDENT: each} for each in self.students]
        taught: list[Point] = []
        for methods in product(*map(self._sampled, self.slots)):
            point: Point = {slot(i): name for i, name in enumerate(methods, start=1)}
            needs_one = len(self.teachers) > 1 and set(methods) != {CONTROL}
            taught += [point | {TEACHER: t} for t in self.teachers] if needs_one else [point]
        every = product(students, self._decisions(), taught)
        return [student | decided | each for student, decided, each in every]

    @property
    def deciding(self) -> tuple[ChoiceField, ...]:
        """The fields of recipe and views that others need."""
        needed = {name for each in self.shared for name, _ in each.beside}
        choices = (each for each in self.shared if isinstance(each, ChoiceField))
        return tuple(each for each in choices if each.name in needed)

    def _decisions(self) -> list[Point]:
        """Their options, each with each where they exist."""
        points: list[Point] = [{}]
        for each in self.deciding:
            points = [
                point | chosen
                for point in points
                for chosen in (
                    [{each.name: option} for option in each.options]
                    if exists(each, point)
                    else [{}]
                )
            ]
        return points

    def first_points(self) -> list[Point]:
        """The trials that every search begins with: each student's control, and the points that are
        asked for. Then, where they are not among these, with the first student and teacher: each
        candidate as published, beside its companions, else the control's choice (else the first
        candidate) in the other slots, and the combinations. Then the first of these with each other
        teacher, and what did well elsewhere."""
        shared: Point = {}
        for each in self.shared:
            if exists(each, shared):
                shared[each.name] = each.published
        if len(self.students) > 1:
            points = [self._control() | {STUDENT: each} | shared for each in self.students]
            shared = {STUDENT: self.students[0]} | shared
        else:
            points = [self._control() | shared]
        points += self.asked
        known = set(map(settings_of, self.asked))
        choices = self._first_choices()
        first = [(self.teachers[0], choice) for choice in choices]
        first += [(teacher, choice) for teacher in self.teachers[1:] for choice in choices[:1]]
        for teacher, (chosen, beside) in first:
            point: Point = {TEACHER: teacher} if len(self.teachers) > 1 else {}
            point |= {slot(i): name for i, name in enumerate(chosen, start=1)}
            for name in chosen:
                for each in self.fields[self.students[0], teacher, name]:
                    value = beside.get(each.name, each.published)
                    point[each.name] = value if each.takes(value) else each.published
            if settings_of(shared | point) not in known:
                points.append(shared | point)
        return [*points, *self.prior]

    def _first_choices(self) -> list[tuple[list[str], Point]]:
        """The methods of the first trials after the controls, a name for each slot, and the
        settings of those that stand beside the one that is tried."""
        choices: list[tuple[list[str], Point]] = []
        alone = [(method,) for candidates in self.slots for method in candidates]
        for methods in (*alone, *self.combinations):
            alone_as = self.accompanied.get(methods[0]) if len(methods) == 1 else None
            others = alone_as.beside if alone_as else {}
            chosen = [
                next((name for name in (*methods, *others) if name in candidates), None)
                or (CONTROL if CONTROL in candidates else candidates[0])
                for candidates in self.slots
            ]
            beside = {
                f"{name}.{setting}": value
                for name in others
                if name in chosen
                for setting, value in others[name].items()
            }
            if set(chosen) != {CONTROL} and (chosen, beside) not in choices:
                choices.append((chosen, beside))
        return choices

    def points_to_check(self) -> list[Point]:
        """For the first student and teacher, each candidate as published with each of its choices
        of layers."""
        points: list[Point] = []
        for point in self.first_points()[len(self.students) :]:
            points.append(point)
            for method in {value for key, value in point.items() if key.startswith(SLOT)}:
                for each in self.fields[self.students[0], self.teachers[0], method]:
                    if isinstance(each, ChoiceField) and each.layers:
                        points += [point | {each.name: option} for option in each.options]
        return points

    def size(self) -> tuple[Dimensions, Dimensions]:
        """All dimensions of the space, and those of the trial that has most; what is fixed is
        none."""
        own = {key: _dimensions(fields) for key, fields in self.fields.items()}
        named = {each.name: each for fields in self.fields.values() for each in fields}
        choices = sum(len(self._sampled(candidates)) > 1 for candidates in self.slots)
        chosen = (len(self.students) > 1) + (len(self.teachers) > 1)
        common = Dimensions(0, choices + chosen)
        whole = common + _dimensions([*self.shared, *named.values()])
        most = max(
            (
                sum((max(own[*pair, name] for name in names) for names in self.slots), common)
                for pair in product(self.students, self.teachers)
            ),
        )
        return whole, most + self._most_shared()

    def _most_shared(self) -> Dimensions:
        """The most dimensions of recipe and views that a trial has."""
        found = Dimensions(0, 0)
        for point in self._decisions():
            there = [each for each in self.shared if each.name in point or exists(each, point)]
            found = max(found, _dimensions(there))
        return found

    def describe(self) -> list[tuple[str, str]]:
        """Name and range of everything that is searched."""
        slots = [
            (slot(number), ", ".join(candidates))
            for number, candidates in enumerate(self.slots, start=1)
        ]
        for name, networks in ((TEACHER, self.teachers), (STUDENT, self.students)):
            if len(networks) > 1:
                slots.insert(0, (name, ", ".join(networks)))
        fields = [each for of_method in self.fields.values() for each in of_method]
        named = {each.name: str(each) for each in (*self.shared, *fields)}
        return slots + list(named.items())


def is_logarithmic(experiment: Experiment, name: str) -> bool:
    """Whether a setting is searched in its logarithm; `name` is a plain one."""
    for each in shared_fields(experiment):
        if plain_name(each.name) == name:
            return isinstance(each, NumberField) and each.log
    method, _, setting = name.partition(".")
    if method not in CATALOGUE:
        return False
    mark = CATALOGUE[method].Params.searched().get(setting)
    return isinstance(mark, Span) and mark.log


def published_trials(experiment: Experiment) -> range:
    """The numbers of the trials with published settings, which follow the controls, in a search
    without points that are asked for; with them, the record tells."""
    students, teachers = experiment.students, experiment.teachers
    methods = {name for slot in experiment.objective for name in slot}
    fields = {(*pair, name): () for pair in experiment.pairs for name in methods}
    together, beside = experiment.search.combinations, accompanied(experiment)
    space = Space(students, teachers, experiment.objective, fields, (), together, beside)
    return range(len(students), len(space.first_points()))
