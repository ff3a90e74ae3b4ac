"""Published figures: what papers and their repositories report for a pair and an objective."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from kdcore.errors import ConfigError, did_you_mean
from search.experiment.closed import Closed
from search.experiment.reading import keys_of, parse

Epoch = Literal["last", "best"]


@dataclass(frozen=True)
class Figure:
    """A published accuracy.

    Args:
        accuracy: mean of the runs, 0 to 1, on the test split.
        spread: their standard deviation, on that scale; none where it is not published.
        seeds: number of runs; none where it is not known.
        epoch: the last, or the best on the test split; none where it is not known.
        source: where it is written.
    """

    accuracy: float
    spread: float | None
    seeds: int | None
    epoch: Epoch | None
    source: str


@dataclass(frozen=True)
class PairFigures:
    """What is published of a pair; several figures where several sources measured the same.

    Args:
        pair: its name.
        teacher: of the teacher.
        student: of the student without a teacher.
        rows: of the student, by row.
    """

    pair: str
    teacher: tuple[Figure, ...]
    student: tuple[Figure, ...]
    rows: Mapping[str, tuple[Figure, ...]]

    def of(self, row: str) -> tuple[Figure, ...]:
        """The figures of a row.

        Raises:
            ConfigError: there are none.
        """
        if row not in self.rows:
            raise ConfigError(
                f"no published figure of {self.pair} has the row {row!r}"
                f"{did_you_mean(row, self.rows)} Published are {', '.join(self.rows)}"
            )
        return self.rows[row]


def _cell(value: object) -> tuple[float, float | None] | None:
    """An accuracy in percent and, where it is published, its standard deviation."""
    if value is None:
        return None
    match value if isinstance(value, list) else [value]:
        case [int() | float() as accuracy] if 0 < accuracy < 100:
            return accuracy, None
        case [int() | float() as accuracy, int() | float() as spread] if 0 < accuracy < 100:
            return accuracy, spread
    raise ValueError(
        f"is {value!r}, but must be an accuracy in percent, [accuracy, standard deviation], or "
        "null where none is published"
    )


_Column = tuple[Annotated[tuple[float, float | None] | None, PlainValidator(_cell)], ...]


class Table(Closed):
    """A table as it is published: a column for each pair.

    Args:
        source: where it is.
        pairs: their names.
        epoch: of the figures; null where that is not known.
        seeds: number of runs of each; null where that is not known.
        teacher: accuracies of the teachers; none where the table has none.
        student: of the students without a teacher, likewise.
        rows: of the students, by row.
    """

    source: str
    pairs: Annotated[tuple[str, ...], Field(min_length=1)]
    epoch: Epoch | None = None
    seeds: int | None = Field(None, ge=1)
    teacher: _Column = ()
    student: _Column = ()
    rows: dict[str, _Column]

    @model_validator(mode="after")
    def _a_figure_for_each_pair(self) -> Self:
        if len(set(self.pairs)) < len(self.pairs):
            raise ValueError(f"pairs is {list(self.pairs)}, but lists one twice; list each once")
        baselines = {"teacher": self.teacher, "student": self.student}
        given = {name: row for name, row in baselines.items() if row}
        for name, row in {**self.rows, **given}.items():
            if len(row) != len(self.pairs):
                raise ValueError(
                    f"{name} has {len(row)} figures for {len(self.pairs)} pairs; write null where "
                    "none is published"
                )
        return self

    def figure(self, pair: str, row: _Column) -> tuple[Figure, ...]:
        """What a row says of a pair: one figure, or none."""
        cell = row[self.pairs.index(pair)] if row and pair in self.pairs else None
        if cell is None:
            return ()
        accuracy, spread = (None if each is None else round(each / 100, 6) for each in cell)
        assert accuracy is not None
        return (Figure(accuracy, spread, self.seeds, self.epoch, self.source),)


class Figures(Closed):
    """Published figures of pairs.

    Args:
        tables: as they are published.
    """

    tables: tuple[Table, ...]

    @property
    def pairs(self) -> tuple[str, ...]:
        """The names of all pairs."""
        return tuple(dict.fromkeys(pair for table in self.tables for pair in table.pairs))

    def of(self, pair: str) -> PairFigures:
        """The figures of a pair.

        Raises:
            ConfigError: there are none.
        """
        if pair not in self.pairs:
            raise ConfigError(
                f"no figures of the pair {pair!r} are published{did_you_mean(pair, self.pairs)} "
                f"There are those of {', '.join(self.pairs)}"
            )

        def of_all(row: Callable[[Table], _Column]) -> tuple[Figure, ...]:
            return tuple(one for table in self.tables for one in table.figure(pair, row(table)))

        names = dict.fromkeys(name for table in self.tables for name in table.rows)
        rows = {name: of_all(partial(_row, name)) for name in names}
        return PairFigures(
            pair,
            of_all(lambda table: table.teacher),
            of_all(lambda table: table.student),
            {name: figures for name, figures in rows.items() if figures},
        )


def _row(name: str, table: Table) -> _Column:
    return table.rows.get(name, ())


def read_figures(path: Path) -> Figures:
    """Reads a file of published figures.

    Raises:
        ExperimentError: with all mistakes of the file.
    """
    return parse(Figures, keys_of(path), str(path))
