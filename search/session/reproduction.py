"""Reproducing published figures: the rows of a pair with several seeds, beside the student alone.

A pair is kept like a search, in `searches/`, with its rows as confirmed students. So a reproduction
goes on where it was cut off, and repeats nothing.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcore.errors import did_you_mean
from search.cluster.connection import places_for_trials
from search.cluster.console_log import output_to
from search.errors import ExperimentError, Problem
from search.experiment.figures import Figures, read_figures
from search.experiment.pair import Pair, read_pairs
from search.experiment.reading import check_name
from search.experiment.running import use_plugins
from search.experiment.schema import CONTROL
from search.record.files import interrupted
from search.record.owner import owned
from search.record.record import SearchRecord
from search.record.storage import Storage, local_home
from search.record.wording import as_typed
from search.report.reproduction.comparison import Block, block
from search.report.reproduction.formats import write_files
from search.report.reproduction.table import PROTOCOL
from search.session.launch import fresh_record, on_ray
from search.session.live_display import LiveDisplay
from search.session.preflight import Prepared, prepare
from search.session.retraining.reproduced_pair import ReproducedPair, changes
from search.session.retraining.retraining import Asked
from search.session.session import Session
from search.session.sharing import settled

FIGURES = "figures.yaml"
"""The file of published figures, in a pair's folder or the nearest one above that has it."""

# Drawing takes a second of the driver's time.
_PICTURE_SECONDS = 60.0


@dataclass(frozen=True)
class Reproduction:
    """What a reproduction has given so far.

    Args:
        folder: where its files are.
        blocks: its pairs, beside what was published of them.
        failed: number of the runs that failed.
    """

    folder: Path
    blocks: tuple[Block, ...]
    failed: int


def reproduce(
    paths: Sequence[Path],
    *,
    storage: Storage,
    pairs: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int | None = None,
    epochs: int | None = None,
    overrides: Iterable[str] = (),
    name: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
) -> Reproduction:
    """Trains the rows of pairs and their controls, and compares them with what was published.

    What an earlier call has done stays; pairs, rows and seeds that it was not asked for come to it.

    Args:
        paths: files of pairs, or folders of such.
        storage: where teachers and records are kept.
        pairs: names of pairs; none: all.
        methods: names of rows; none: all. The control, `none`, is trained in any case.
        seeds: number of runs of each; none: as each pair says.
        epochs: of the students; none: as each pair says.
        overrides: of all pairs, like `data.root=images`.
        name: of the reproduction; none: that of the files and folders.
        address: of a Ray cluster; none: Ray is started on this machine.
        tracking_uri: of MLflow; none: a SQLite file below the storage.

    Raises:
        ExperimentError: a pair cannot be run, there is none of this name, or the reproduction was
            begun with other settings; nothing was made.
        ClusterError, SearchFailedError: as `launch`.
        KeyboardInterrupt: Ctrl-C cut it off; what had ended is recorded.
    """
    overrides = [*overrides, *([] if epochs is None else [f"training.epochs={epochs}"])]
    name = name or "-".join(path.absolute().stem for path in paths)
    check_name(name)
    as_written, as_asked = read_pairs(paths), read_pairs(paths, overrides)
    chosen = _chosen((pair.name for pair in as_asked), pairs, "--pairs", "pair")
    published = _published(paths)
    known = [row for pair in as_asked if pair.name in chosen for row in (CONTROL, *pair.rows)]
    rows = _chosen(known, methods, "--methods", "row")

    def asked(pair: Pair) -> tuple[str, ...]:
        if pair.name not in chosen or not rows & {CONTROL, *pair.rows}:
            return ()
        return (CONTROL, *(row for row in pair.rows if row in rows))

    parts = [
        ReproducedPair(
            pair=pair,
            changes=tuple(changes(written, pair)),
            figures=next(
                (each.of(pair.name) for each in published if pair.name in each.pairs), None
            ),
            reproduction=name,
            rows=asked(pair),
            seeds=tuple((pair.seed + number) % 2**32 for number in range(seeds or pair.seeds)),
        )
        for written, pair in zip(as_written, as_asked, strict=True)
    ]
    records, prepared = {}, {}
    for part in parts:
        use_plugins(part.experiment)
        records[part.search] = part.record(storage)
    for part in parts:
        if part.missing(records[part.search]):
            prepared[part.search] = prepare(part.experiment, storage, part.pair.name)
            part.check(prepared[part.search])
    return _Reproducing(name, parts, records, storage).run(prepared, address, tracking_uri)


def _published(paths: Iterable[Path]) -> list[Figures]:
    """The published figures that belong to files or folders."""
    found = {}
    for path in paths:
        here = path.absolute()
        for folder in (here, *here.parents):
            if (file := folder / FIGURES).is_file():
                found[file] = read_figures(file)
                break
    return list(found.values())


def _chosen(known: Iterable[str], asked: Sequence[str], option: str, what: str) -> set[str]:
    """The names that are asked for; all, if none is.

    Raises:
        ExperimentError: one is not known.
    """
    names = list(dict.fromkeys(known))
    for each in asked:
        if each not in names:
            message = f"no {what} {each!r}{did_you_mean(each, names)} There are {', '.join(names)}"
            raise ExperimentError(option, [Problem(key="", message=message)])
    return set(asked or names)


class _Reproducing:
    """The pairs of a reproduction, one after the other, with the files as they come.

    Args:
        name: of the reproduction.
        parts: its pairs.
        records: by name, as an earlier call left them.
        storage: where they are kept.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[ReproducedPair],
        records: Mapping[str, SearchRecord | None],
        storage: Storage,
    ) -> None:
        self._name, self._parts, self._storage = name, parts, storage
        self._records = dict(records)
        self._folder = local_home(storage) / "reproductions" / name
        self._drawn = time.monotonic()

    def run(
        self, prepared: Mapping[str, Prepared], address: str | None, tracking_uri: str | None
    ) -> Reproduction:
        """Trains what is missing.

        Args:
            prepared: by the name of its record, each pair that misses something.
            address: of a Ray cluster; none: Ray is started on this machine.
            tracking_uri: of MLflow; none: a SQLite file below the storage.
        """
        if prepared:
            log = local_home(self._storage) / "logs" / f"{self._name}.log"
            with output_to(log) as console, LiveDisplay(console) as progress:
                try:
                    self._train(prepared, address, tracking_uri, log, progress)
                except KeyboardInterrupt:
                    progress.say("stopped; the same command continues, and repeats nothing")
                    raise
                finally:
                    self._write(picture=True)
        else:
            self._write(picture=True)
        failed = sum(
            bool(run.reason) and run.seed in part.seeds and row.label in part.rows
            for part in self._parts
            if (record := self._records[part.search]) is not None
            for row in record.confirmed
            for run in row.runs
        )
        return Reproduction(self._folder, tuple(self._blocks()), failed)

    def _train(
        self,
        prepared: Mapping[str, Prepared],
        address: str | None,
        tracking_uri: str | None,
        log: Path,
        progress: LiveDisplay,
    ) -> None:
        progress.say(
            f"reproduction {self._name}; what Ray and MLflow say goes to {as_typed(log)}, the "
            f"table to {as_typed(self._folder)}\n{PROTOCOL}"
        )
        for part in self._parts:
            if part.search in prepared and part.changes:
                progress.say(f"{part.pair.name}, unlike its file: {'; '.join(part.changes)}")
        first = next(iter(prepared.values())).experiment
        with on_ray(address, log, first, tracking_uri, progress):
            for part in self._parts:
                if part.search in prepared:
                    self._train_part(part, prepared[part.search], tracking_uri, log, progress)

    def _train_part(
        self,
        part: ReproducedPair,
        prepared: Prepared,
        tracking_uri: str | None,
        log: Path,
        progress: LiveDisplay,
    ) -> None:
        experiment = prepared.experiment
        use_plugins(experiment)
        with owned(self._storage, part.search) as owner:
            earlier = part.record(self._storage)
            if earlier is not None:
                resources = experiment.resources.or_else(earlier.experiment.resources)
                experiment = experiment.model_copy(update={"resources": resources})
                prepared = replace(prepared, experiment=experiment)
            students = part.students(experiment, earlier)
            record = (
                fresh_record(experiment, self._storage, part.search, tracking_uri)
                if earlier is None
                else interrupted(earlier)
            )
            record = record.model_copy(
                update={
                    "experiment": experiment,
                    "state": "running",
                    "reproduces": part.pair.name,
                    "confirmed": tuple(students),
                }
            )
            asked = tuple(each for each in students if each.label in part.rows)
            prepared, record = settled(
                prepared,
                record,
                self._storage,
                progress.say,
                waiting=lambda: None,  # no pair says that the cluster will grow
                runs=len(asked) * len(part.seeds),
            )
            parallel = places_for_trials(prepared.experiment, self._storage)
            session = Session(prepared, self._storage, record, owner, progress, log, parallel)
            self._take(session.run(Asked(asked, part.seeds, "reproduce"), self._take))

    def _take(self, record: SearchRecord) -> None:
        """Writes the files with what has come to a pair."""
        self._records[record.name] = record
        picture = time.monotonic() - self._drawn > _PICTURE_SECONDS
        self._write(picture=picture)
        if picture:
            self._drawn = time.monotonic()

    def _write(self, *, picture: bool) -> None:
        write_files(self._name, list(self._blocks()), self._folder, picture=picture)

    def _blocks(self) -> Iterable[Block]:
        for part in self._parts:
            if (record := self._records[part.search]) is not None:
                yield block(record, part.figures, part.changes)
