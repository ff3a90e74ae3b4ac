"""What logging costs: many searches at once, one MLflow server with PostgreSQL and passwords.

    python -m tests.benchmarks.tracking [--writers N] [--trials N] [--epochs N]

Each writer is a process with a tracker of its own, as a search's driver has, and a share of the
trials. Its loop seconds are what its calls took, which is what a search waits for; its processor
seconds are what its thread took as well. Afterwards every run is read back, and every epoch of
every trial must be there once, with its value. A table is printed, and `runs/bench/tracking.json`
written; the exit status is 1 if anything is missing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from rich.console import Console

from kdcore.data.image_data import open_data
from kdcore.training.evaluation import default_device
from kdcore.training.report import EpochReport
from search.experiment.reading import parse_experiment
from search.record.record import SearchRecord, TrialRecord
from search.tracking.tracker import Tracker
from tests.benchmarks import report
from tests.integration.tracking_server import running_server

EXPERIMENT: dict[str, Any] = {
    "name": "tracking",
    "data": {"name": "digits", "heldout_fraction": 0.2},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 50},
    "search": {"trials": 500},
}

# A search trains for this long in an epoch at least, where logging could matter.
EPOCH_SECONDS = 1.0


def accuracy_of(trial: int, epoch: int) -> float:
    """A value that no other epoch has."""
    return round(trial + epoch / 1000, 4)


def write(number: int, uri: str, trials: int, epochs: int) -> dict[str, float]:
    """A driver's calls for its trials, as fast as it can."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = parse_experiment(EXPERIMENT, "benchmark")
        now = datetime.now(UTC)
        record = SearchRecord(
            name=f"writer-{number}",
            experiment=experiment,
            state="running",
            tracking_uri=uri,
            started=now,
            updated=now,
        )
        data = open_data(experiment.data, Path(folder))
        began, used = time.perf_counter(), time.process_time()
        tracker = Tracker(uri, Path(folder), Path(folder) / "mlflow.jsonl", record, data)
        calling = time.perf_counter()
        tracker.open()
        tracker.start_search(record, "name: tracking\n", {})
        for trial in range(trials):
            known = TrialRecord(
                number=trial,
                student="resnet8",
                point={"objective.1": "kd", "kd.weight": 0.9},
                objective="kd(weight=0.9)",
                state="running",
                epochs=epochs,
            )
            tracker.start_trial(known, "kd", {"student": "resnet8"}, None)
            for epoch in range(1, epochs + 1):
                accuracy = accuracy_of(trial, epoch)
                tracker.log_epoch(trial, epoch_report(epoch, epochs, accuracy), None)
            tracker.end_trial(known.model_copy(update={"state": "finished"}))
            if (trial + 1) % 10 == 0:
                print(f"writer {number}: {trial + 1} of {trials} trials", file=sys.stderr)
        tracker.end_search(record.model_copy(update={"state": "finished"}))
        loop = time.perf_counter() - calling
        lost = 1
        while lost:  # as long as the server needs
            lost = tracker.close()
            if lost:
                tracker = Tracker(uri, Path(folder), Path(folder) / "mlflow.jsonl", record, data)
                tracker.open()
        return {
            "loop_seconds": loop,
            "processor_seconds": time.process_time() - used,
            "seconds": time.perf_counter() - began,
        }


def epoch_report(epoch: int, epochs: int, accuracy: float) -> EpochReport:
    return EpochReport(
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
        epoch_seconds=EPOCH_SECONDS,
    )


def missing(uri: str, number: int, trials: int, epochs: int) -> int:
    """How many epochs of a writer's trials are not there exactly once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tracking")
    runs = client.search_runs(
        [experiment.experiment_id],
        f"tags.`kdsearch.search` = 'writer-{number}' and tags.`kdsearch.role` = 'trial'",
        max_results=10_000,
    )
    wrong = abs(len(runs) - trials) * epochs
    for run in runs:
        trial = int(run.data.tags["kdsearch.trial"])
        history = client.get_metric_history(run.info.run_id, "heldout_accuracy")
        expected = [(epoch, accuracy_of(trial, epoch)) for epoch in range(1, epochs + 1)]
        wrong += epochs * (sorted((each.step, each.value) for each in history) != expected)
        wrong += epochs * (run.info.status != "FINISHED")
    return wrong


def measure(uri: str, home: Path, writers: int, trials: int, epochs: int) -> dict[str, Any]:
    """Runs the writers at once, and reads back what they wrote.

    Args:
        uri: of the server.
        home: of the user who knows its password.
        writers: processes.
        trials: of all writers together.
        epochs: of a trial.
    """
    shares = [trials // writers + (number < trials % writers) for number in range(writers)]
    started = time.perf_counter()
    command = [sys.executable, "-m", "tests.benchmarks.tracking", "--uri", uri]
    command += ["--epochs", str(epochs)]
    processes = [
        subprocess.Popen(
            [*command, "--writer", str(number), "--trials", str(share)],
            env=os.environ | {"HOME": str(home), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        for number, share in enumerate(shares)
    ]
    rows = []
    try:
        for process in processes:
            output, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"a writer ended with status {process.returncode}")
            rows.append(json.loads(output.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    seconds = time.perf_counter() - started
    with home_of(home):
        lost = sum(missing(uri, number, share, epochs) for number, share in enumerate(shares))
    entries = trials * epochs
    loop = sum(row["loop_seconds"] for row in rows)
    processor = sum(row["processor_seconds"] for row in rows)
    return {
        "writers": writers,
        "trials": trials,
        "epochs": epochs,
        "missing_epochs": lost,
        "seconds": seconds,
        "epochs_per_second": entries / seconds,
        "loop_ms_per_epoch": 1000 * loop / entries,
        "processor_ms_per_epoch": 1000 * processor / entries,
        "share_of_a_search": loop / (entries * EPOCH_SECONDS),
    }


@contextmanager
def home_of(home: Path) -> Iterator[None]:
    """MLflow's client finds the password there."""
    usual = os.environ["HOME"]
    os.environ["HOME"] = str(home)
    try:
        yield
    finally:
        os.environ["HOME"] = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--writer", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer is not None:
        print(json.dumps(write(options.writer, options.uri, options.trials, options.epochs)))
        return
    with report.Benchmark("tracking", default_device(), 1) as benchmark:
        benchmark.doing("server and database start")
        with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as server:
            benchmark.doing(f"{options.writers} writers, {options.trials} trials")
            row = measure(server.url, server.home, options.writers, options.trials, options.epochs)
        benchmark.add(row)
        table = benchmark.table(*row, title="Many searches, one server")
        table.add_row(
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        )
        Console(width=160).print(table)
    sys.exit(row["missing_epochs"] > 0)


if __name__ == "__main__":
    main()
