"""A row of a paper's table, as a file: a teacher, a student, and objectives as published."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from kdcore import CacheConfig, DataConfig, Recipe, TeacherConfig, TermConfig, TrialConfig
from kdcore.contract.plugin import Plugin
from kdcore.contract.published import BENCHMARKS, Benchmark
from kdcore.data.centre_crop import USUAL_CROP
from kdcore.data.config import OF_WEIGHTS
from kdcore.errors import ConfigError, did_you_mean
from kdcore.methods import CATALOGUE, check_method
from search.errors import ExperimentError, Problem
from search.experiment.closed import Closed
from search.experiment.plugins import declared_in
from search.experiment.reading import parse_with_plugins, read_content
from search.experiment.schema import CONTROL, NAME_PATTERN, BackboneName, Resources
from search.experiment.space.published import published_settings

Row = dict[str, dict[str, Any]]
"""An objective: by method, the settings that are not those published for the benchmark."""


class Pair(Closed):
    """A teacher and a student of a paper's table, with the objectives that are compared.

    Args:
        name: by default the file's name.
        data: the images, of which nothing is held out: the whole training split trains, and the
            test split is looked at after each epoch.
        teacher: see `kdcore.TeacherConfig`.
        student: a network.
        rows: by name, the methods of each objective, and their settings where these are not those
            published for the benchmark. The control is there anyway.
        training: the recipe of the students.
        seeds: number of runs of each row.
        seed: of the first run: of its initial weights and the order of its images.
        published: the benchmark, `cifar` or `imagenet`; null: by the size of the images.
        resources: what one run occupies; by default a share of what the cluster has.
        cache: see `kdcore.CacheConfig`; null: the teacher computes in every step.
        plugins: a user's own code, as in an experiment.
    """

    name: str = Field(pattern=NAME_PATTERN)
    data: DataConfig
    teacher: TeacherConfig
    student: BackboneName
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    training: Recipe
    seeds: int = Field(5, ge=1, le=1000)
    seed: int = Field(0, ge=0, lt=2**32)
    published: Benchmark | None = None
    resources: Resources = Resources()
    cache: CacheConfig | None = CacheConfig()
    plugins: tuple[Plugin, ...] = ()

    def objective(self, row: str, benchmark: Benchmark) -> tuple[TermConfig, ...]:
        """The terms of a row; none for the control.

        Args:
            row: its name, or `none` for the control.
            benchmark: whose published settings count where the row says nothing.

        Raises:
            ConfigError: there is no such row.
        """
        if row == CONTROL:
            return ()
        if row not in self.rows:
            raise ConfigError(
                f"{self.name} has no row {row!r}{did_you_mean(row, self.rows)} "
                f"Its rows are {', '.join((CONTROL, *self.rows))}"
            )
        return tuple(
            TermConfig.model_validate(
                {"method": method, "params": published_settings(method, benchmark) | settings}
            )
            for method, settings in self.rows[row].items()
        )

    def trial(self, row: str, benchmark: Benchmark, seed: int) -> TrialConfig:
        """A run of a row.

        Args:
            row: its name, or `none` for the control.
            benchmark: whose published settings count where the row says nothing.
            seed: of the run.

        Raises:
            ConfigError: there is no such row.
        """
        return TrialConfig(
            data=self.data,
            teacher=self.teacher,
            student=self.student,
            objective=self.objective(row, benchmark),
            training=self.training,
            seed=seed,
            cache=self.cache,
        )

    @model_validator(mode="after")
    def _images_for_each_worker(self) -> Self:
        self.training.check_workers(self.resources.workers)
        return self

    @field_validator("data")
    @classmethod
    def _whole_training_split(cls, data: DataConfig) -> DataConfig:
        if data.heldout_fraction:
            raise ValueError(
                f"heldout_fraction is {data.heldout_fraction:g}, but the field's tables are made "
                "on the whole training split; set it to 0"
            )
        return data

    @field_validator("data")
    @classmethod
    def _evaluation_in_numbers(cls, data: DataConfig) -> DataConfig:
        if data.evaluation == OF_WEIGHTS:
            raise ValueError(
                f"evaluation is {data.evaluation!r}, but a published table was evaluated in one "
                f"way; give its numbers, like {USUAL_CROP}"
            )
        return data

    @field_validator("rows", mode="before")
    @classmethod
    def _legal_rows(cls, rows: Any) -> Any:
        if not isinstance(rows, Mapping):
            return rows  # which pydantic refuses
        _raise(wrong for name, row in rows.items() for wrong in _mistakes(name, row))
        return {
            name: {
                method: {setting: _legal(method, setting, value) for setting, value in of.items()}
                for method, of in row.items()
            }
            for name, row in rows.items()
        }

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        wrong = []
        for row in self.rows:
            for benchmark in BENCHMARKS if self.published is None else (self.published,):
                try:
                    self.trial(row, benchmark, self.seed)
                except ValidationError as error:
                    wrong.append(_mistake(("rows", row), self.rows[row], _rule(error)))
                    break
        _raise(wrong)
        return self

    @model_validator(mode="wrap")  # the last one: around all others
    @classmethod
    def _with_its_plugins(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, Mapping):
            return handler(value)
        with declared_in(value):
            return handler(value)


def read_pair(path: Path, overrides: Iterable[str] = ()) -> Pair:
    """Reads a pair's file.

    Args:
        path: a YAML file.
        overrides: texts like `training.epochs=20`; the value is read as YAML.

    Raises:
        ExperimentError: with all mistakes of the file.
    """
    return parse_with_plugins(Pair, read_content(path, overrides), str(path))


def read_pairs(paths: Iterable[Path], overrides: Iterable[str] = ()) -> tuple[Pair, ...]:
    """Reads several pairs.

    Args:
        paths: YAML files, and folders: of these all YAML files that name a network, for others are
            only bases.
        overrides: of all of them, as for `read_pair`.

    Raises:
        ExperimentError: with all mistakes of the first file that has any; a folder has no pair, or
            two pairs have the same name.
    """
    overrides = tuple(overrides)
    found: dict[str, Path] = {}
    pairs = []
    for path in paths:
        files = _pairs_in(path) if path.is_dir() else [path]
        if not files:
            message = (
                "has no file of a pair, with a teacher's backbone and a student; folders inside "
                "are not read"
            )
            raise ExperimentError(str(path), [Problem(key="", message=message)])
        for file in files:
            pair = read_pair(file, overrides)
            if pair.name in found:
                message = f"is {pair.name!r}, as that of {found[pair.name]}; rename one of them"
                raise ExperimentError(str(file), [Problem(key="name", message=message)])
            found[pair.name] = file
            pairs.append(pair)
    return tuple(pairs)


def _pairs_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.yaml")) if _names_a_network(path)]


def _names_a_network(path: Path) -> bool:
    content = read_content(path)
    teacher = content.get("teacher")
    return "student" in content or (isinstance(teacher, Mapping) and "backbone" in teacher)


def _mistakes(name: object, row: object) -> Iterator[InitErrorDetails]:
    """What is wrong with a row by itself."""
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        message = f"invalid name {name!r}: use 1-100 letters, digits, '.', '_', '-', in quotes"
        yield _mistake((str(name),), row, message)
    elif name == CONTROL:
        yield _mistake(
            (name,), row, f"{name!r} is the control, which is there anyway; leave it out"
        )
    elif not isinstance(row, Mapping) or not row:
        yield _mistake((name,), row, f"is {row!r}, but must hold methods, like kd: {{}}")
    else:
        for method, settings in row.items():
            yield from _mistakes_of_method(name, method, settings)


def _mistakes_of_method(row: str, method: object, settings: object) -> Iterator[InitErrorDetails]:
    place = (row, str(method))
    try:
        if method == CONTROL:
            raise ConfigError(f"{method!r} adds no term; leave it out")
        check_method(str(method))
    except ConfigError as error:
        yield _mistake(place, settings, str(error))
        return
    if not isinstance(settings, Mapping):
        message = f"is {settings!r}, but must hold settings, or be {{}} for those published"
        yield _mistake(place, settings, message)
        return
    for setting, value in settings.items():
        try:
            _legal(str(method), str(setting), value)
        except ConfigError as error:
            yield _mistake((*place, str(setting)), value, str(error))


def _legal(method: str, setting: str, value: object) -> Any:
    """A setting's value as the method takes it.

    Raises:
        ConfigError: the method has no such setting, or does not take the value.
    """
    params = CATALOGUE[method].Params
    if setting not in params.model_fields:
        raise ConfigError(
            f"unknown setting {setting!r}{did_you_mean(setting, params.model_fields)} "
            f"Known here: {', '.join(params.model_fields)}"
        )
    try:
        return getattr(params.model_validate({setting: value}), setting)
    except ValidationError as error:
        raise ConfigError(f"{value!r} is not legal: {_rule(error)}") from None


def _rule(error: ValidationError) -> str:
    """The first of pydantic's reasons; of one of our own, without its prefix."""
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def _mistake(place: tuple[str, ...], value: object, message: str) -> InitErrorDetails:
    return InitErrorDetails(
        type="value_error", loc=place, input=value, ctx={"error": ConfigError(message)}
    )


def _raise(mistakes: Iterable[InitErrorDetails]) -> None:
    """Refuses with all mistakes, if there are any."""
    if wrong := list(mistakes):
        raise ValidationError.from_exception_data("rows", wrong)
