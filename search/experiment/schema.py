"""The keys of an experiment file, with their defaults and rules."""

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from kdcore import CacheConfig, DataConfig, EnsembleConfig, StudentConfig, TeacherConfig
from kdcore.backbones.names import check_backbone
from kdcore.contract.plugin import Plugin
from kdcore.contract.published import Benchmark
from kdcore.distillation.without_labels import check_without_labels
from kdcore.errors import ConfigError
from kdcore.methods import check_method, check_mixing
from kdcore.teacher.config import ENSEMBLE, TEACHER, AnyTeacher
from search.experiment.closed import Closed
from search.experiment.constraints import Constraints
from search.experiment.plugins import declared_in, with_registered
from search.experiment.prices import Prices
from search.experiment.search_config import SearchConfig
from search.experiment.searched import Option, mistakes_in, refuse
from search.experiment.teacher_labels import teacher_labels
from search.experiment.training import Training
from search.experiment.views import SearchedViews, searched_views

CONTROL = "none"

AUTO = "auto"
"""Of `resources`: as the cluster has them."""

# A name becomes a folder; this is what keeps it inside its place.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


# Pydantic puts the tag of the chosen alternative into an error's path; the user never wrote it.
_ONE, _SEVERAL = ("one name", "several names")
TAGS = (_ONE, _SEVERAL, TEACHER, ENSEMBLE)


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
    """What one trial occupies: so much for each of its `workers`, processes that train its student
    together. Fractions of a GPU share it; its memory is not divided.

    Without `gpus`, as when only `auto` is written, both are decided where trials run, see
    `search.session.sharing`, and what is written of `cpus` stays. Until then it is a trial on the
    CPU.

    Args:
        cpus: number of cores, and of threads.
        gpus: number of GPUs; 0: the trial computes on the CPU.
        workers: number of processes, wherever they are placed; each has a part of every batch.
    """

    cpus: int = Field(1, ge=1)
    gpus: float = Field(0.0, ge=0)
    workers: int = Field(1, ge=1)

    @property
    def is_decided(self) -> bool:
        """Whether the number of GPUs is known."""
        return "gpus" in self.model_fields_set

    @property
    def written(self) -> dict[str, Any]:
        """The keys that are given or decided; with the GPUs the cores are. Of workers, several."""
        keys = {"cpus", "gpus"} if self.is_decided else self.model_fields_set - {"workers"}
        keys = keys | ({"workers"} if self.workers > 1 else set())
        return {key: getattr(self, key) for key in type(self).model_fields if key in keys}

    @property
    def devices(self) -> float:
        """Number of GPUs or, without any, of cores."""
        return self.workers * (self.gpus or self.cpus)

    def or_else(self, decided: Self) -> Self:
        """These, completed by those of an earlier decision."""
        return type(self)(**{**decided.written, **self.written})

    @model_validator(mode="before")
    @classmethod
    def _undecided(cls, value: Any) -> Any:
        if value == AUTO:
            return {}
        if isinstance(value, Mapping | Resources):
            return value
        raise ValueError(f"is {value!r}, but must be {AUTO}, or keys like {{cpus: 4, gpus: 1}}")

    @model_validator(mode="after")
    def _a_device_for_each_worker(self) -> Self:
        if self.workers > 1 and self.gpus % 1:
            raise ValueError(
                f"gpus is {self.gpus:g}, but {self.workers} workers need a whole GPU each; set it "
                f"to 1, or to 0 for the CPU"
            )
        return self

    @model_serializer
    def _without_what_is_undecided(self) -> dict[str, Any]:
        return self.written


def _tag(value: object) -> str:
    return _SEVERAL if isinstance(value, list | tuple) else _ONE


BackboneName = Annotated[str, AfterValidator(check_backbone)]


class Experiment(Closed):
    """A search, as its user writes it.

    Args:
        name: of the task (default: the file's name). Searches of one task share an MLflow
            experiment.
        data: see `kdcore.DataConfig`; its augmentation may be searched.
        teacher: see `kdcore.TeacherConfig` and `kdcore.EnsembleConfig`; or a list of teachers to
            choose from.
        student: a network, or a list of networks to choose from; each a name, or a mapping with
            the weights that it begins with, see `kdcore.StudentConfig`.
        objective: the terms added to cross-entropy: a list of slots, each a list of candidate
            methods. A trial has one method of each slot.
        training: the recipe of the students, of which nearly any key may be searched.
        seed: of the students' initial weights and the order of their images.
        search: how the space is searched.
        resources: what one trial occupies; by default a share of what the cluster has.
        cache: see `kdcore.CacheConfig`; null: the teacher computes in every step.
        narrow: a smaller range [low, high], fewer options or one fixed value for settings like
            `kd.temperature`; options for others, like `kd.cross_entropy`.
        published: whose published settings come first, `cifar` or `imagenet`; null: by the size of
            the images.
        confirm: what is retrained at the end of the search; null: nothing, until
            `kdsearch confirm` is called.
        licences: for the model card.
        constraints: what a student may cost; a search keeps those that are within.
        prices: of an hour, so that costs and `search.budget` are in money; null: in hours alone.
        plugins: a user's own code: files, relative to the experiment's, or modules of packages;
            see `kdcore.contract.plugin`. Their names are known while an experiment is validated,
            and their code is run by those who run the experiment.
    """

    name: str = Field(pattern=NAME_PATTERN)
    data: DataConfig
    teacher: Annotated[
        Annotated[AnyTeacher, Tag(_ONE)]
        | Annotated[tuple[AnyTeacher, ...], Field(min_length=1), Tag(_SEVERAL)],
        Discriminator(_tag),
    ]
    student: Annotated[
        Annotated[StudentConfig, Tag(_ONE)]
        | Annotated[tuple[StudentConfig, ...], Field(min_length=1), Tag(_SEVERAL)],
        Discriminator(_tag),
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
    constraints: Constraints = Constraints()
    prices: Prices | None = None
    plugins: tuple[Plugin, ...] = ()
    _views: SearchedViews | None = PrivateAttr(None)

    @property
    def searched_views(self) -> SearchedViews | None:
        """What is searched of `data.augmentation`; none if nothing is. `data` has that of the first
        trials."""
        return self._views

    @property
    def teacher_configs(self) -> dict[str, TeacherConfig | EnsembleConfig]:
        """The teachers by their labels: the network's name, with what tells two of one network
        apart."""
        several = self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
        return dict(zip(teacher_labels(several), several, strict=True))

    @property
    def teachers(self) -> tuple[str, ...]:
        """The labels of the teachers."""
        return tuple(self.teacher_configs)

    @property
    def teacher_keys(self) -> dict[str, str]:
        """By label, where a teacher stands in the file, like `teacher` or `teacher.1`."""
        if not isinstance(self.teacher, tuple):
            return dict.fromkeys(self.teachers, "teacher")
        return {label: f"teacher.{place}" for place, label in enumerate(self.teachers)}

    def members(self, label: str) -> dict[str, TeacherConfig]:
        """The teachers of an ensemble, or a teacher alone, by where they stand in the file."""
        key, teacher = self.teacher_keys[label], self.teacher_configs[label]
        if isinstance(teacher, TeacherConfig):
            return {key: teacher}
        return {f"{key}.ensemble.{place}": each for place, each in enumerate(teacher.ensemble)}

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each student with each teacher, by their labels."""
        return tuple(product(self.students, self.teachers))

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

    @model_validator(mode="wrap")
    @classmethod
    def _with_searched_views(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        data = value.get("data") if isinstance(value, Mapping) else None
        if not isinstance(data, Mapping):
            return handler(value)
        views, wrong = searched_views(data)
        if views is None and not wrong:
            return handler(value)
        first = None if views is None else views.at({})
        try:
            made = handler({**value, "data": {**data, "augmentation": first}})
        except ValidationError as error:
            refuse([*wrong, *mistakes_in(error, (), value)])
        refuse(wrong)
        made._views = views
        return made

    @model_serializer(mode="wrap")
    def _with_its_views(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if self._views is not None and "data" in content:
            content["data"]["augmentation"] = self._views.written()
        if not self.constraints.limits:  # a later key
            content.pop("constraints", None)
        if not self.plugins:  # likewise
            content.pop("plugins", None)
        if not self.resources.written:
            content.pop("resources", None)
        if self.prices is None:  # likewise
            content.pop("prices", None)
        return content

    @field_validator("teacher")
    @classmethod
    def _each_teacher_once(
        cls, teacher: AnyTeacher | tuple[AnyTeacher, ...]
    ) -> AnyTeacher | tuple[AnyTeacher, ...]:
        if isinstance(teacher, tuple):
            teacher_labels(teacher)
        return teacher

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
    def _images_for_each_worker(self) -> Self:
        for recipe in self.training.variants("batch_size"):
            recipe.check_workers(self.resources.workers)
        if self.resources.gpus or not self.resources.is_decided:  # on the CPU one trains a teacher
            for label in self.teachers:
                for key, teacher in self.members(label).items():
                    if teacher.training is not None:
                        try:
                            teacher.training.check_workers(self.resources.workers)
                        except ConfigError as error:
                            raise ValueError(f"{key}.{error}") from None
        return self

    @model_validator(mode="after")
    def _methods_that_take_mixed_images(self) -> Self:
        if self.data.mixes if self._views is None else self._views.mixes:
            check_mixing(name for slot in self.objective for name in slot)
        return self

    @model_validator(mode="after")
    def _learned_without_labels(self) -> Self:
        if self.data.judge is not None:
            for recipe in self.training.variants("linear_probe"):
                teachers = self.teacher_configs.values()
                check_without_labels(self.data.judge, teachers, recipe)
        return self

    @model_validator(mode="after")
    def _front_of_several_students(self) -> Self:
        if self.search.goal == "pareto" and len(self.students) == 1:
            raise ValueError(
                f"search.goal is pareto, but student is {self.students[0]} alone, and a front "
                f"needs several; list more students, or leave goal out"
            )
        return self

    @model_validator(mode="after")
    def _rungs_within_budget(self) -> Self:
        name, rule = self.search.stopping, self.search.rule
        if rule is not None and rule.first_epoch(self.training.epochs) > self.training.epochs:
            raise ValueError(
                f"search.{name}.grace_epochs is {rule.grace_epochs}, but must be at most "
                f"training.epochs, which is {self.training.epochs}"
            )
        return self

    @property
    def wrong_budget(self) -> str:
        """What is wrong with a budget of what the trials do not use or that has no price; empty if
        nothing is."""
        if self.search.budget is not None and self.prices is None:
            return "search.budget is given, but no prices; add them, like prices: {gpu_hour: 1.2}"
        if self.resources.is_decided:
            if self.search.gpu_hours is not None and not self.resources.gpus:
                return "search.gpu_hours is given, but the trials use no GPU; use cpu_hours"
            if self.search.cpu_hours is not None and self.resources.gpus:
                return (
                    "search.cpu_hours is given, but the trials use GPUs; use gpu_hours, or set "
                    "resources.gpus to 0"
                )
            if self.prices is not None and (missing := self.prices.missing(self.resources.gpus)):
                use = "use GPUs" if self.resources.gpus else "use no GPU"
                return f"prices has no {missing}, but the trials {use}; add prices.{missing}"
        return ""

    @model_validator(mode="after")
    def _budget_of_what_trials_use(self) -> Self:
        if self.wrong_budget:
            raise ValueError(self.wrong_budget)
        return self

    @model_validator(mode="wrap")  # the last one: around all others
    @classmethod
    def _with_its_plugins(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, Mapping):
            return handler(value)
        value = with_registered(value)
        with declared_in(value):
            return handler(value)
