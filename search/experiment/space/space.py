"""The space of a search: what Optuna is asked for, and the points that come first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

from kdcore.contract.published import Published
from kdcore.contract.searched import Span
from kdcore.methods import CATALOGUE
from search.experiment.schema import CONTROL, Experiment, SearchedRange
from search.experiment.space.fields import ChoiceField, SearchedField
from search.experiment.space.point import (
    IS_CONTROL,
    LEARNING_RATE,
    SLOT,
    STUDENT,
    Point,
    settings_of,
    slot,
)
from search.experiment.space.published import accompanied

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Space:
    """What a search chooses from; the fields of a method exist only where it is chosen.

    Args:
        students: the networks that may learn.
        slots: the candidate methods of each slot.
        fields: by student and method, the searched fields.
        shared: fields that every trial has, whatever its student and methods.
        combinations: methods that are also tried together at the start.
        accompanied: what is published of those that stand beside other methods there.
        asked: the points that a user asks for.
    """

    students: tuple[str, ...]
    slots: tuple[tuple[str, ...], ...]
    fields: Mapping[tuple[str, str], tuple[SearchedField, ...]]
    shared: tuple[SearchedField, ...]
    combinations: tuple[tuple[str, ...], ...] = ()
    accompanied: Mapping[str, Published] = field(default_factory=dict)
    asked: tuple[Point, ...] = ()

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
            each.suggest(trial)
        if control:
            return trial.params | self._control()
        for number, candidates in enumerate(self.slots, start=1):
            method = trial.suggest_categorical(slot(number), self._sampled(candidates))
            for each in self.fields[student, method]:
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
        """Each student, where there are several, with each choice of methods that is sampled."""
        students: list[Point] = [{}]
        if len(self.students) > 1:
            students = [{STUDENT: each} for each in self.students]
        methods = product(*map(self._sampled, self.slots))
        slots = [{slot(i): name for i, name in enumerate(each, start=1)} for each in methods]
        return [student | each for student, each in product(students, slots)]

    def first_points(self) -> list[Point]:
        """The trials that every search begins with: each student's control, and the points that are
        asked for. Then, where they are not among these, with the first student: each candidate as
        published, beside its companions, else the control's choice (else the first candidate) in
        the other slots, and the combinations."""
        shared: Point = {each.name: each.published for each in self.shared}
        if len(self.students) > 1:
            points = [self._control() | {STUDENT: each} | shared for each in self.students]
            shared = {STUDENT: self.students[0]} | shared
        else:
            points = [self._control() | shared]
        points += self.asked
        known = set(map(settings_of, self.asked))
        for chosen, beside in self._first_choices():
            point: Point = {slot(i): name for i, name in enumerate(chosen, start=1)}
            for name in chosen:
                for each in self.fields[self.students[0], name]:
                    value = beside.get(each.name, each.published)
                    point[each.name] = value if each.takes(value) else each.published
            if settings_of(shared | point) not in known:
                points.append(shared | point)
        return points

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
        """For the first student, each candidate as published with each of its choices of layers."""
        points: list[Point] = []
        for point in self.first_points()[len(self.students) :]:
            points.append(point)
            for method in {value for key, value in point.items() if key.startswith(SLOT)}:
                for each in self.fields[self.students[0], method]:
                    if isinstance(each, ChoiceField) and each.layers:
                        points += [point | {each.name: option} for option in each.options]
        return points

    def describe(self) -> list[tuple[str, str]]:
        """Name and range of everything that is searched."""
        slots = [
            (slot(number), ", ".join(candidates))
            for number, candidates in enumerate(self.slots, start=1)
        ]
        if len(self.students) > 1:
            slots.insert(0, (STUDENT, ", ".join(self.students)))
        fields = [each for of_method in self.fields.values() for each in of_method]
        named = {each.name: str(each) for each in (*self.shared, *fields)}
        return slots + list(named.items())


def is_logarithmic(experiment: Experiment, name: str) -> bool:
    """Whether a setting is searched in its logarithm; `name` is a plain one."""
    rate = experiment.training.learning_rate
    if name == LEARNING_RATE:
        return isinstance(rate, SearchedRange) and rate.log
    method, _, setting = name.partition(".")
    if method not in CATALOGUE:
        return False
    mark = CATALOGUE[method].Params.searched().get(setting)
    return isinstance(mark, Span) and mark.log


def published_trials(experiment: Experiment) -> range:
    """The numbers of the trials with published settings, which follow the controls, in a search
    without points that are asked for; with them, the record tells."""
    students = experiment.students
    methods = {name for slot in experiment.objective for name in slot}
    fields = {(student, name): () for student in students for name in methods}
    together = experiment.search.combinations
    space = Space(students, experiment.objective, fields, (), together, accompanied(experiment))
    return range(len(students), len(space.first_points()))
