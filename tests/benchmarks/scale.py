"""What the search engine costs: seconds and memory of the driver against the number of trials.

    python -m tests.benchmarks.scale [--trials N ...] [--epochs N]

Trials that only report, through the searcher, scheduler, records and MLflow store (SQLite) of a
real search. Each size runs in a process of its own. Seconds are from before the first trial's start
to the last one's end; closing is what MLflow still has to write then. Each further trial is what
the trials beyond the size before cost, without what the first ones pay for all. A table is printed,
and `runs/bench/scale.json` written.
"""

import argparse
import json
import resource
import sqlite3
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from kdcore.training.evaluation import default_device
from kdcore.training.report import EpochReport
from search.cluster.connection import connect, places_for_trials
from search.cluster.console_log import output_to
from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment
from search.experiment.space.point import Point
from search.record.record import SAVED
from search.record.storage import Storage
from search.session.launch import fresh_record
from search.session.live_display import LiveDisplay
from search.session.preflight import plan
from search.session.session import Session
from tests.benchmarks import report


def reporting_trial(point: Point, *, experiment_json: str, storage_uri: str, search: str) -> None:
    """Reports as many epochs as were asked for; accuracies follow from the point."""
    epochs = Experiment.model_validate_json(experiment_json).training.epochs
    chance = zlib.crc32(repr(sorted(point.items())).encode()) / 2**32
    for epoch in range(1, epochs + 1):
        accuracy = chance * epoch / epochs
        epoch_report = EpochReport(
            epoch=epoch,
            epochs=epochs,
            train_loss=1.0,
            train_terms={"cross_entropy": 1.0, "kd": 1.0},
            train_accuracy=accuracy,
            heldout_accuracy=accuracy,
            heldout_loss=1.0,
            best_heldout_accuracy=accuracy,
            best_epoch=epoch,
            learning_rate=0.1,
            epoch_seconds=0.0,
        )
        tune.report(asdict(epoch_report) | {SAVED: 0})


class _EmptySearch(Session):
    """A search whose trials only report."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._trainable = reporting_trial
        self.figures: dict[str, float] = {}

    def _prepare_teacher(self) -> None:
        pass

    def _measure_students(self) -> None:
        pass

    def _run_trials(self) -> None:
        before = _peak_mib()
        started, used = time.perf_counter(), time.process_time()
        super()._run_trials()
        self.figures = {
            "seconds": time.perf_counter() - started,
            "driver_cpu_seconds": time.process_time() - used,
            "mib_before": before,
            "mib_peak": _peak_mib(),
        }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(trials: int, epochs: int) -> dict[str, Any]:
    """Runs one search in this process."""
    content = {
        "name": "benchmark",
        "data": {"name": "digits"},
        "teacher": {"backbone": "resnet14", "training": {"epochs": 1}},
        "student": "resnet8",
        "objective": [["none", "kd", "dkd"], ["none", "at", "fitnet", "rkd"]],
        "training": {"epochs": epochs},
        "search": {"trials": trials, "asha": {"grace_epochs": 1, "reduction": 3}},
    }
    with tempfile.TemporaryDirectory() as folder:
        storage, log = Storage(folder), Path(folder) / "log"
        experiment = parse_experiment(content, "benchmark")
        prepared = plan(experiment, storage, "benchmark")
        fresh = fresh_record(experiment, storage, "benchmark", None)
        with output_to(log) as console, LiveDisplay(console) as progress:
            connect(None, log)
            try:
                places = places_for_trials(experiment, storage)
                search = _EmptySearch(prepared, storage, fresh, progress, log, places)
                started = time.perf_counter()
                record = search.run()
                seconds = time.perf_counter() - started
            finally:
                ray.shutdown()
        with sqlite3.connect(Path(folder) / "mlflow.db") as store:
            (runs,) = store.execute(
                "SELECT COUNT(*) FROM runs WHERE status IN ('FINISHED', 'KILLED')"
            ).fetchone()
    if record.state != "finished":  # Ctrl-C ends a search cleanly
        raise KeyboardInterrupt
    figures = search.figures
    return {
        "trials": len(record.trials),
        "reports": sum(trial.epochs_done for trial in record.trials),
        **figures,
        "closing_seconds": seconds - figures["seconds"],
        "mlflow_runs": runs - 1,  # the search has one as well
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--epochs", type=int, default=3, help="that a trial reports")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        try:
            print(json.dumps(measure(options.one, options.epochs)))
        except KeyboardInterrupt:
            sys.exit(130)
        return
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "trials": lambda row: str(row["trials"]),
        "reports": lambda row: str(row["reports"]),
        "seconds": lambda row: f"{row['seconds']:.1f}",
        "a trial": lambda row: f"{row['seconds_per_trial']:.2f}",
        "each further": lambda row: f"{row['seconds_per_further_trial']:.2f}",
        "driver CPU s": lambda row: f"{row['driver_cpu_seconds']:.1f}",
        "each  further": lambda row: f"{row['driver_cpu_seconds_per_further_trial']:.3f}",
        "peak MiB": lambda row: f"{row['mib_peak']:.0f}",
        "KiB, each further": lambda row: f"{row['kib_per_further_trial']:.0f}",
        "closing s": lambda row: f"{row['closing_seconds']:.1f}",
        "in MLflow": lambda row: str(row["mlflow_runs"]),
    }
    with report.Benchmark("scale", default_device(), 1, epochs=options.epochs) as benchmark:
        table = benchmark.table(*columns, title="Searches whose trials only report")
        for trials in options.trials:
            benchmark.doing(f"a search of {trials} trials")
            command = [sys.executable, "-m", "tests.benchmarks.scale", "--one", str(trials)]
            row = report.figures_of([*command, "--epochs", str(options.epochs)])
            smaller = benchmark.rows[-1] if benchmark.rows else dict.fromkeys(row, 0)
            further = row["trials"] - smaller["trials"]
            row["seconds_per_trial"] = row["seconds"] / row["trials"]
            for figure in ("seconds", "driver_cpu_seconds"):
                row[f"{figure}_per_further_trial"] = (row[figure] - smaller[figure]) / further
            grown = row["mib_peak"] - (smaller["mib_peak"] or row["mib_before"])
            row["kib_per_further_trial"] = grown * 2**10 / further
            benchmark.add(row)
            table.add_row(*(text(row) for text in columns.values()))
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
