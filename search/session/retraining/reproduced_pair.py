"""A pair of a reproduction as a record: its rows as students that are trained again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdcore.contract.plugin import Plugin
from kdcore.contract.published import Benchmark
from search.errors import ExperimentError, Problem
from search.experiment.figures import PairFigures
from search.experiment.pair import Pair
from search.experiment.reading import check_name
from search.experiment.schema import CONTROL, Experiment
from search.experiment.search_config import SearchConfig
from search.experiment.space.point import Point, slot
from search.experiment.space.trial_config import trial_config
from search.experiment.training import Training
from search.record.files import read_record
from search.record.log import has_record
from search.record.record import Confirmed, SearchRecord
from search.record.storage import Storage, search_storage
from search.session.preflight import Prepared, check_methods


@dataclass(frozen=True)
class ReproducedPair:
    """A pair of a reproduction, kept as a record of its own.

    Args:
        pair: as it is trained.
        changes: what differs from its file, in words.
        figures: that were published of it; none if none were.
        reproduction: its name.
        rows: that are asked for, the control among them; none if the pair is not.
        seeds: of their runs.
    """

    pair: Pair
    changes: tuple[str, ...]
    figures: PairFigures | None
    reproduction: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def search(self) -> str:
        """The name of its record."""
        same = self.pair.name == self.reproduction
        return self.reproduction if same else f"{self.reproduction}-{self.pair.name}"

    @cached_property
    def slots(self) -> list[list[str]]:
        """Each method of the pair in the first slot where it has none beside it in any row."""
        slots: list[list[str]] = []
        for method in dict.fromkeys(name for row in self.pair.rows.values() for name in row):
            beside = {name for row in self.pair.rows.values() if method in row for name in row}
            free = next((each for each in slots if not beside.intersection(each)), None)
            if free is None:
                slots.append(free := [])
            free.append(method)
        return slots

    @property
    def experiment(self) -> Experiment:
        """What is trained, as a search would write it; nothing is held out."""
        pair = self.pair
        return Experiment(
            name=self.reproduction,
            data=pair.data,
            teacher=pair.teacher,
            student=pair.student,
            objective=tuple((*candidates, CONTROL) for candidates in self.slots),
            training=Training.model_validate(pair.training.model_dump()),
            seed=pair.seed,
            search=SearchConfig(trials=len(pair.rows) + 1, asha=None),
            resources=pair.resources,
            cache=pair.cache,
            published=pair.published,
            plugins=pair.plugins,
        )

    def point(self, row: str, benchmark: Benchmark) -> Point:
        """A row as a search would choose it."""
        terms = {term.method: term for term in self.pair.objective(row, benchmark)}
        point: Point = {
            slot(number): next((name for name in candidates if name in terms), CONTROL)
            for number, candidates in enumerate(self.slots, start=1)
        }
        for method, term in terms.items():
            point |= {f"{method}.{setting}": value for setting, value in term.params}
        return point

    def students(self, experiment: Experiment, record: SearchRecord | None) -> list[Confirmed]:
        """The rows that are asked for or recorded, in the file's order, with the runs that they
        have already."""
        assert experiment.published is not None
        recorded = {each.label: each for each in record.confirmed} if record else {}
        found = []
        for row in (CONTROL, *self.pair.rows):
            if row in self.rows or row in recorded:
                point = self.point(row, experiment.published)
                objective = trial_config(experiment, point).objective
                student = Confirmed(
                    label=row,
                    role="control" if row == CONTROL else "published",
                    trial=None,
                    student=self.pair.student,
                    objective=" + ".join(map(str, objective)) or CONTROL,
                    point=point,
                    runs=recorded[row].runs if row in recorded else (),
                )
                found.append(student)
        return found

    def missing(self, record: SearchRecord | None) -> bool:
        """Whether anything is left to do for what is asked."""
        recorded = {each.label: each.test_accuracies for each in record.confirmed} if record else {}
        runs = [(row, seed) for row in self.rows for seed in self.seeds]
        done = all(seed in recorded.get(row, {}) for row, seed in runs)
        return bool(runs) and (record is None or record.state != "finished" or not done)

    def check(self, prepared: Prepared) -> None:
        """Tries the methods on the networks.

        Raises:
            ExperimentError: one cannot work.
        """
        students = self.students(prepared.experiment, None)
        check_methods(prepared, (each.point for each in students), self.pair.name)

    def record(self, storage: Storage) -> SearchRecord | None:
        """What an earlier call has recorded; none if there was none.

        Raises:
            ExperimentError: it was called with other settings, or the name is a search's.
        """
        check_name(self.search)
        if not has_record(search_storage(storage, self.search)):
            return None
        record = read_record(storage, self.search)
        if record.reproduces != self.pair.name:
            raise _taken(
                f"{self.search!r} is a search"
                if not record.reproduces
                else f"{self.search!r} reproduces {record.reproduces}"
            )
        begun, given = _code(record.experiment.plugins), _code(self.pair.plugins)
        for file, old, new in _differences(begun, {file: given.get(file) for file in begun}):
            raise _taken(
                f"{self.search!r} was begun with {file} of digest {old}, and now it is {new}"
            )
        experiment, benchmark = self.experiment, record.experiment.published
        assert benchmark is not None
        resources = experiment.resources.or_else(record.experiment.resources)
        experiment = experiment.model_copy(update={"resources": resources})
        for row in record.confirmed:
            if row.label not in (CONTROL, *self.pair.rows):
                raise _taken(f"{self.search!r} has a row {row.label!r}, which its file has not")
            then = _settings(record.experiment, row.point)
            now = _settings(experiment, self.point(row.label, experiment.published or benchmark))
            for key, old, new in _differences(then, now):
                what = f"{self.search!r} was begun with {key} {old}, and now it is {new}"
                raise _taken(what)
        return record


def _taken(what: str) -> ExperimentError:
    message = f"{what}; give the same settings to go on, or another --name to begin anew"
    return ExperimentError("--name", [Problem(key="", message=message)])


def _code(plugins: Iterable[Plugin]) -> dict[str, str]:
    """By file or module, the digests of plugins."""
    return {each.file: each.digest for each in plugins}


def _settings(experiment: Experiment, point: Point) -> dict[str, Any]:
    """Everything that decides a row's numbers and times."""
    config = trial_config(experiment, point).model_dump(mode="json")
    objective = {term["method"]: term["params"] for term in config.pop("objective")}
    return {**config, **objective, "resources": experiment.resources.written}


def changes(written: Pair, asked: Pair) -> list[str]:
    """How a pair differs from its file, in words, like `training.epochs 2 instead of 240`; where it
    finds its images says nothing."""

    def content(pair: Pair) -> dict[str, Any]:
        kept = {"data", "teacher", "student", "training", "rows", "published"}
        found = pair.model_dump(mode="json", include=kept)
        return {
            **found,
            **{f"plugins.{file}": digest for file, digest in _code(pair.plugins).items()},
            "data": {**found["data"], "root": None, "download": None, "decoded_gb": None},
        }

    found = {key: (old, new) for key, old, new in _differences(content(written), content(asked))}
    # A recipe's milestones keep their share of the epochs.
    following = {f"{key.removesuffix('.epochs')}.milestones" for key in found}
    return [
        f"{key} {new} instead of {old}" for key, (old, new) in found.items() if key not in following
    ]


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """The keys that differ, with both values in words."""
    before, after = _flat(then), _flat(now)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield key, _in_words(before.get(key)), _in_words(after.get(key))


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _in_words(value: object) -> str:
    return "null" if value is None else str(value)
