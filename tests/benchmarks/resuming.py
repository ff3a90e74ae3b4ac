"""How soon a large search is going again after `kdsearch resume`.

    python -m tests.benchmarks.resuming [--trials N ...] [--epochs N] [--store NAME ...]

A made-up search that has ended, in its storage and in MLflow as `pages` writes it, is resumed with
more trials, twice: the first time the teacher is trained and the student measured, the second time
both are there, as where a search was cut off. Seconds are from the command to the record that says
that the new trial runs; MLflow's to its run there. A table is printed, and
`runs/bench/resuming.json` written.
"""

import argparse
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from kdcore.training.evaluation import default_device
from search.record.log import RecordReader
from search.record.record import SearchRecord
from search.record.storage import Storage
from tests.benchmarks import report
from tests.benchmarks.pages import STORES, served
from tests.benchmarks.tracking import home_of
from tests.integration.commands import Command


def resume(folder: Path, record: SearchRecord) -> dict[str, float]:
    """Seconds until one trial more runs, in the record and in MLflow."""
    storage, client = Storage(str(folder)), MlflowClient(record.tracking_uri)
    number = len(record.trials)
    reader = RecordReader(storage, record.name)
    started = time.perf_counter()
    command = Command(folder, "resume", record.name, "--more-trials", "1", "--storage", storage.uri)

    def is_in_record() -> bool:
        found = reader.read()
        return found is not None and len(found.trials) > number

    def is_in_mlflow() -> bool:
        query = f"tags.`kdsearch.role` = 'trial' and tags.`kdsearch.trial` = '{number}'"
        return bool(client.search_runs([record.mlflow_experiment_id], query))

    try:
        return {
            "record": _seconds_until(command, is_in_record, started),
            "mlflow": _seconds_until(command, is_in_mlflow, started),
        }
    finally:
        command.send(signal.SIGINT)
        command.wait()


def _seconds_until(command: Command, came: Callable[[], bool], started: float) -> float:
    command.wait_until(came)
    return time.perf_counter() - started


def measure(store: str, trials: int, epochs: int) -> dict[str, Any]:
    """Fills a store, and resumes its search twice."""
    row: dict[str, Any] = {"store": store, "trials": trials}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Where the server has a password, it is in this home.
        with served(store, folder, trials, epochs), home_of(folder):
            for time_ in ("first", "second"):
                record = RecordReader(Storage(name), "made-up-1").read()
                assert record is not None
                seconds = resume(folder, record)
                row |= {f"{time_}_{of}_seconds": value for of, value in seconds.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 10_000])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--store", choices=STORES, nargs="*", default=STORES)
    options = parser.parse_args()
    with report.Benchmark("resuming", default_device(), 1, epochs=options.epochs) as benchmark:
        for store in options.store:
            for trials in options.trials:
                benchmark.doing(f"{store}: {trials} trials")
                benchmark.add(measure(store, trials, options.epochs))
        benchmark.shown(title="Seconds until a resumed search runs", decimals=1)


if __name__ == "__main__":
    main()
