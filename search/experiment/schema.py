"""The keys of an experiment file, with their defaults and rules."""

import math
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from kdcore import CacheConfig, DataConfig, StudentConfig, TeacherConfig
from kdcore.backbones.names import check_backbone
from kdcore.contract.published import Benchmark
from kdcore.methods import check_method, check_mixing
from kdcore.training.recipe import BaseRecipe
from search.experiment.closed import Closed
from search.experiment.search_config import SearchConfig

CONTROL = "none"

# A name becomes a folder; this is what keeps it inside its place.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Option = bool | int | float | str


class SearchedRange(Closed):
    """A number that the search chooses, both ends included.

    Args:
        low: the smallest value, > 0.
        high: the largest value.
        log: sample evenly in the logarithm.
    """

    low: float = Field(gt=0)
    high: float
    log: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, but must be below high, which is {self.high}")
        return self

    @property
    def middle(self) -> float:
        """Where the first trials stand: the centre on the scale that is sampled."""
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2


# Pydantic puts the tag of the chosen alternative into an error's path; the user never wrote it.
_NUMBER, _RANGE, _ONE, _SEVERAL = "a number", "a range", "one name", "several names"
TAGS = (_NUMBER, _RANGE, _ONE, _SEVERAL)


class Training(BaseRecipe):
    """The students' recipe: `kdcore.Recipe`, whose learning rate may be searched."""

    learning_rate: Annotated[
        Annotated[float, Field(gt=0), Tag(_NUMBER)] | Annotated[SearchedRange, Tag(_RANGE)],
        Discriminator(lambda value: _NUMBER if isinstance(value, int | float | str) else _RANGE),
    ] = 0.05

    @model_validator(mode="after")
    def _minimum_below_the_peak(self) -> Self:
        rate = self.learning_rate
        self._check_minimum(rate.low if isinstance(rate, SearchedRange) else rate)
        return self

    def __str__(self) -> str:
        rate = self.learning_rate
        if isinstance(rate, SearchedRange):
            return self.in_words(f"{rate.low:g} to {rate.high:g}")
        return self.in_words(f"{rate:g}")


class Confirm(Closed):
    """Which students are retrained at the end, with fresh seeds, and tested once.

    Args:
        top: number of top trials to retrain, beside their controls and `kd` as published.
        seeds: number of runs of each, with the same seeds for all.
    """

    top: int = Field(3, ge=1)
    seeds: int = Field(5, ge=2, le=1000)


class Licences(Closed):
    """The licences that the model card names; it asks for those left out.

    Args:
        data: of the images.
        teacher: of its weights.
        student: of the exported student.
    """

    data: str = ""
    teacher: str = ""
    student: str = ""


class Resources(Closed):
    """What one trial occupies. Fractions of a GPU share it; its memory is not divided.

    Args:
        cpus: number of cores, and of threads.
        gpus: number of GPUs.
    """

    cpus: int = Field(1, ge=1)
    gpus: float = Field(0.0, ge=0)


BackboneName = Annotated[str, AfterValidator(check_backbone)]


class Experiment(Closed):
    """A search, as its user writes it.

    Args:
        name: of the task (default: the file's name). Searches of one task share an MLflow
            experiment.
        data: see `kdcore.DataConfig`.
        teacher: see `kdcore.TeacherConfig`.
        student: a network, or a list of networks to choose from; each a name, or a mapping with
            the weights that it begins with, see `kdcore.StudentConfig`.
        objective: the terms added to cross-entropy: a list of slots, each a list of candidate
            methods. A trial has one method of each slot.
        training: the recipe of the students.
        seed: of the students' initial weights and the order of their images.
        search: how the space is searched.
        resources: what one trial occupies.
        cache: see `kdcore.CacheConfig`; null: the teacher computes in every step.
        narrow: a smaller range [low, high], fewer options or one fixed value for settings like
            `kd.temperature`; options for others, like `kd.cross_entropy`.
        published: whose published settings come first, `cifar` or `imagenet`; null: by the size of
            the images.
        confirm: what is retrained at the end of the search; null: nothing, until
            `kdsearch confirm` is called.
        licences: for the model card.
    """

    name: str = Field(pattern=NAME_PATTERN)
    data: DataConfig
    teacher: TeacherConfig
    student: Annotated[
        Annotated[StudentConfig, Tag(_ONE)]
        | Annotated[tuple[StudentConfig, ...], Field(min_length=1), Tag(_SEVERAL)],
        Discriminator(lambda value: _SEVERAL if isinstance(value, list | tuple) else _ONE),
    ]
    objective: tuple[
        Annotated[tuple[Annotated[str, AfterValidator(check_method)], ...], Field(min_length=1)],
        ...,
    ] = Field(min_length=1)
    training: Training
    seed: int = Field(0, ge=0, lt=2**32)
    search: SearchConfig
    resources: Resources = Resources()
    cache: CacheConfig | None = CacheConfig()
    narrow: dict[str, tuple[Option, ...]] = Field(default_factory=dict)
    published: Benchmark | None = None
    confirm: Confirm | None = None
    licences: Licences = Licences()

    @property
    def student_configs(self) -> dict[str, StudentConfig]:
        """The networks that may learn, by their labels."""
        student = self.student
        several = (student,) if isinstance(student, StudentConfig) else student
        return {each.label: each for each in several}

    @property
    def students(self) -> tuple[str, ...]:
        """The labels of the networks that may learn; see `kdcore.StudentConfig`."""
        return tuple(self.student_configs)

    @field_validator("student")
    @classmethod
    def _each_student_once(
        cls, student: StudentConfig | tuple[StudentConfig, ...]
    ) -> StudentConfig | tuple[StudentConfig, ...]:
        if isinstance(student, StudentConfig):
            return student
        labels = [each.label for each in student]
        if len(set(student)) < len(student):
            raise ValueError(f"is {labels}, but lists a student twice; list each once")
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise ValueError(
                f"has two students called {twice!r}; give the weights of one another name"
            )
        return student

    @field_validator("objective")
    @classmethod
    def _each_method_once(cls, slots: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        seen: set[str] = set()
        for slot in slots:
            for name in slot:
                if slot.count(name) > 1 or (name in seen and name != CONTROL):
                    raise ValueError(f"{name!r} is listed twice; list each method once")
            seen |= set(slot)
        if seen == {CONTROL}:
            raise ValueError(f"has only {CONTROL!r}, but needs a method to search")
        return slots

    @model_validator(mode="after")
    def _fresh_weights_are_trained(self) -> Self:
        for label, student in self.student_configs.items():
            if student.weights is None:
                self.training.check_fresh(f"student {label}")
        return self

    @model_validator(mode="after")
    def _methods_that_take_mixed_images(self) -> Self:
        if self.data.mixes:
            check_mixing(name for slot in self.objective for name in slot)
        return self

    @model_validator(mode="after")
    def _rungs_within_budget(self) -> Self:
        name, rule = self.search.stopping, self.search.rule
        if rule is not None and rule.grace_epochs > self.training.epochs:
            raise ValueError(
                f"search.{name}.grace_epochs is {rule.grace_epochs}, but must be at most "
                f"training.epochs, which is {self.training.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _budget_of_what_trials_use(self) -> Self:
        if self.search.gpu_hours is not None and not self.resources.gpus:
            raise ValueError("search.gpu_hours is given, but resources.gpus is 0; use cpu_hours")
        if self.search.cpu_hours is not None and self.resources.gpus:
            raise ValueError("search.cpu_hours is given, but the trials use GPUs; use gpu_hours")
        return self
