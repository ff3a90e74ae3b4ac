"""A table of whole learning curves, on which `tests.benchmarks.searchers` lets searches run.

    python -m tests.benchmarks.curves [--set KEY=VALUE ...] [--out FILE]

Two searches of `experiments/whole_catalogue.yaml`, one for each pair of networks, train every trial
to its last epoch: hours on two cores. A run that was cut off goes on where it was. Each trial's
settings, its held-out accuracy after every epoch and its seconds are written as Parquet, beside the
experiment, the machine and the versions; also of what there is so far, after a cut. The best
settings of each method become what `search.prior: catalogue` stands for. Last, a table of the
methods is printed, those that are best on average first.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import parquet

import search
from search.record.record import SearchRecord
from search.record.wording import markdown_table
from search.session.prior import write_catalogue
from tests.benchmarks import report
from tests.benchmarks.kept_search import kept_search

EXPERIMENT = Path("experiments/whole_catalogue.yaml")
TABLE = Path("experiments/results/whole_catalogue.parquet")

# The teacher of the first pair is of its student's family, that of the second is not.
PAIRS = {"resnet20:resnet8": 0, "wrn_16_2:resnet8": 1}
"""The pairs, and the seeds of their searches."""

STORAGE = "runs/bench/curves"


def searched(pair: str, overrides: Iterable[str]) -> SearchRecord:
    """The search of a pair, run as far as it had not been."""
    teacher, student = pair.split(":")
    own = (f"teacher.backbone={teacher}", f"student={student}", f"search.seed={PAIRS[pair]}")
    experiment = search.read_experiment(EXPERIMENT, (*own, *overrides))
    return kept_search(experiment, pair.replace(":", "-"), STORAGE)


def rows_of(pair: str, record: SearchRecord) -> Iterable[dict[str, object]]:
    """A row for each trial that has ended."""
    for trial in record.trials:
        if not trial.unfinished:
            yield {
                "pair": pair,
                "trial": trial.number,
                "point": json.dumps(trial.point),
                "methods": trial.methods,
                "objective": trial.objective,
                "state": trial.state,
                "reason": trial.reason,
                "epochs_on_top": trial.epochs_on_top,
                "epoch_seconds": trial.train_seconds / max(1, trial.epochs_done),
                "accuracies": list(trial.accuracies),
            }


_COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("pair", "point", "methods", "objective", "state")),
        ("reason", pa.string()),
        *((name, pa.int32()) for name in ("trial", "epochs_on_top")),
        ("epoch_seconds", pa.float32()),
        ("accuracies", pa.list_(pa.float32())),
    ]
)


def write_table(
    path: Path, columns: pa.Schema, rows: Sequence[dict[str, Any]], **facts: Any
) -> None:
    """The whole file or none, with the machine and these facts as its metadata."""
    facts = {"machine": report.machine(torch.device("cpu"), threads=1), **facts}
    table = pa.Table.from_pylist(rows, columns.with_metadata({"kdsearch": json.dumps(facts)}))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    parquet.write_table(table, partial, compression="zstd")
    partial.replace(path)


def write(path: Path, records: dict[str, SearchRecord]) -> int:
    """Writes the table; returns its number of rows."""
    rows = [row for pair, record in records.items() for row in rows_of(pair, record)]
    write_table(
        path,
        _COLUMNS,
        rows,
        experiments={
            pair: record.experiment.model_dump(mode="json", exclude_defaults=True)
            for pair, record in records.items()
        },
        teachers={pair: record.teacher_metrics for pair, record in records.items()},
    )
    return len(rows)


def methods_table(records: dict[str, SearchRecord]) -> str:
    """Each method's accuracy, published and at its best, for each pair."""
    every = [trial for record in records.values() for trial in record.trials]
    cells = {trial.methods: [trial.methods] for trial in every}
    best = dict.fromkeys(cells, 0.0)
    for record in records.values():
        scores: dict[str, list[float]] = {name: [] for name in cells}
        first = dict.fromkeys(cells, "-")
        for trial in record.trials:
            if trial.state == "finished" and trial.score is not None:
                scores[trial.methods].append(100 * trial.score)
                if trial.proposal is not None and trial.proposal.by in {"control", "published"}:
                    first[trial.methods] = f"{100 * trial.score:.2f}"
        for name, found in scores.items():
            best[name] += max(found, default=0.0)
            cells[name] += [first[name], f"{max(found, default=0.0):.2f}", str(len(found))]
    heads = [f"{pair}: {what}" for pair in records for what in ("published", "best", "of")]
    best_first = sorted(cells, key=lambda name: -best[name])
    return markdown_table([("method", *heads), *(cells[name] for name in best_first)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    records: dict[str, SearchRecord] = {}
    for pair in PAIRS:
        records[pair] = searched(pair, options.set)
        print(f"{write(options.out, records)} trials are in {options.out}", flush=True)
        if records[pair].state != "finished":  # Ctrl-C
            raise SystemExit(130)
    write_catalogue(list(records.values()))
    print(methods_table(records))


if __name__ == "__main__":
    main()
