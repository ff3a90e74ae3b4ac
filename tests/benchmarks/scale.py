"""What the search engine costs: seconds and memory of the driver against the number of trials.

    python -m tests.benchmarks.scale [--trials N ...] [--epochs N] [--slots N]

Trials that only report, through the searcher, scheduler, records and MLflow store (SQLite) of a
real search; and, after it, the same trials in Ray Tune alone: as many, with as many reports, in the
same places, with the same settings of Tune, from a searcher that has its points ready. Until their
last epoch all trials are equally good, so early stopping judges every report and stops none. Each
run is a process of its own. Seconds are from before the first trial's start to the last one's end;
closing is what MLflow still has to write then. The process that delivers to MLflow and those of the
trials need processors as well, so where these are few, the driver waits, and its own work takes
longer. Therefore ours is also measured by itself: the processor time of all that Tune calls of
sampler, early stopping and record, for a trial with its reports; of it a proposal of the last
quarter of the trials. Each further trial is what the trials beyond the size before cost, without
what the first ones pay for all. A line is printed for each run, a table at the end, and
`runs/bench/scale.json` written as it goes.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray import tune
from ray.tune.search import Searcher
from rich.console import Console

from kdcore.training.evaluation import default_device
from kdcore.training.report import EpochReport
from search import environment
from search.cluster.connection import places_for_trials
from search.cluster.console_log import output_to
from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment
from search.experiment.space.point import NUMBER, Point
from search.record.owner import owned
from search.record.record import METRIC
from search.record.storage import Storage
from search.session.launch import fresh_record
from search.session.live_display import LiveDisplay
from search.session.preflight import plan
from search.session.recorder import Recorder
from search.session.sampler import OptunaSampler
from search.session.session import Session
from search.session.trial import as_result
from search.stopping.scheduler import ControlSparing
from tests.benchmarks import report


def reporting_trial(point: Point, *, experiment_json: str, **others: Any) -> None:
    """Reports as many epochs as were asked for; the last one's accuracy follows from the point."""
    epochs = Experiment.model_validate_json(experiment_json).training.epochs
    chance = zlib.crc32(repr(sorted(point.items())).encode()) / 2**32
    for epoch in range(1, epochs + 1):
        accuracy = 0.5 + (epoch == epochs) * chance / 2
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
        tune.report(as_result(asdict(epoch_report), saved=0))


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
        with _measured(self.figures):
            super()._run_trials()


class _Points(Searcher):
    """Has its points ready."""

    def __init__(self) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._number = 0

    def suggest(self, trial_id: str) -> Point:
        number, self._number = self._number, self._number + 1
        weights = {f"kd.setting_{place}": number / (place + 1) for place in range(8)}
        return {"objective.1": "kd", "objective.2": "at", **weights, NUMBER: number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass


@contextmanager
def _measured(figures: dict[str, float]) -> Iterator[None]:
    """Adds what the block takes of this process."""
    figures["mib_before"] = _peak_mib()
    started, used = time.perf_counter(), time.process_time()
    yield
    figures["seconds"] = time.perf_counter() - started
    figures["driver_cpu_seconds"] = time.process_time() - used
    figures["mib_peak"] = _peak_mib()


@contextmanager
def _timed(seconds: dict[str, list[float]]) -> Iterator[None]:
    """Adds the processor seconds of each call that Tune makes of what is ours."""
    ours = {
        OptunaSampler: ("suggest", "on_trial_complete"),
        ControlSparing: ("on_trial_result",),
        Recorder: (
            *("on_trial_start", "on_trial_result", "on_trial_complete", "on_trial_error"),
            "on_step_end",
        ),
    }

    def timed(usual: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return usual(*arguments, **named)
            finally:
                spent.append(time.thread_time() - started)

        return call

    with ExitStack() as stack:
        for kind, names in ours.items():
            for name in names:
                spent = seconds.setdefault(f"{kind.__name__}.{name}", [])
                stack.enter_context(patch.object(kind, name, timed(getattr(kind, name), spent)))
        yield


@contextmanager
def _ray(slots: int | None) -> Iterator[None]:
    ray.init(address="local", num_cpus=slots, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _peak_mib() -> float:
    """Linux's own figure of the process; getrusage's counts the parent that started it as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def _experiment(trials: int, epochs: int) -> Experiment:
    content = {
        "name": "benchmark",
        "data": {"name": "digits"},
        "teacher": {"backbone": "resnet14", "training": {"epochs": 1}},
        "student": "resnet8",
        "objective": [["none", "kd", "dkd"], ["none", "at", "fitnet", "rkd"]],
        "training": {"epochs": epochs},
        "search": {"trials": trials, "asha": {"grace_epochs": 1, "reduction": 3}},
    }
    return parse_experiment(content, "benchmark")


def measure(trials: int, epochs: int, slots: int | None) -> dict[str, Any]:
    """Runs one search in this process."""
    experiment = _experiment(trials, epochs)
    spent: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        storage, log = Storage(folder), Path(folder) / "log"
        prepared = plan(experiment, storage, "benchmark")
        fresh = fresh_record(experiment, storage, "benchmark", None)
        with (
            owned(storage, fresh.name, new=True) as owner,
            output_to(log) as console,
            LiveDisplay(console) as progress,
            _ray(slots),
        ):
            places = places_for_trials(experiment, storage)
            search = _EmptySearch(prepared, storage, fresh, owner, progress, log, places)
            started = time.perf_counter()
            with _timed(spent):
                record = search.run()
            seconds = time.perf_counter() - started
        with sqlite3.connect(Path(folder) / "mlflow.db") as store:
            (runs,) = store.execute(
                "SELECT COUNT(*) FROM runs WHERE status IN ('FINISHED', 'KILLED')"
            ).fetchone()
    if record.state != "finished":  # Ctrl-C ends a search cleanly
        raise KeyboardInterrupt
    proposals = spent["OptunaSampler.suggest"]
    last = proposals[-max(1, len(proposals) // 4) :]
    return {
        "trials": len(record.trials),
        "slots": places,
        "reports": sum(trial.epochs_done for trial in record.trials),
        **search.figures,
        "ours_seconds_per_trial": sum(map(sum, spent.values())) / len(record.trials),
        "proposal_seconds": sum(proposals) / len(proposals),
        "proposal_seconds_of_last_quarter": sum(last) / len(last),
        "closing_seconds": seconds - search.figures["seconds"],
        "mlflow_runs": runs - 1,  # the search has one as well
    }


def measure_tune(trials: int, epochs: int, slots: int | None) -> dict[str, Any]:
    """Runs as many trials in Ray Tune alone, in this process."""
    experiment = _experiment(trials, epochs)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, output_to(Path(folder) / "log"), _ray(slots):
        trainable = tune.with_parameters(
            reporting_trial, experiment_json=experiment.model_dump_json()
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": experiment.resources.cpus}),
            tune_config=tune.TuneConfig(
                num_samples=trials,
                search_alg=_Points(),
                max_concurrent_trials=places_for_trials(experiment, Storage(folder)),
                trial_dirname_creator=lambda trial: f"trial_{trial.config[NUMBER]:03d}",
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                progress_reporter=tune.CLIReporter(),
            ),
        )
        with _measured(figures):
            results = tuner.fit()
    reports = sum(result.metrics["training_iteration"] for result in results if result.metrics)
    return {"trials": len(results), "reports": reports, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--epochs", type=int, default=30, help="that a trial reports")
    parser.add_argument("--slots", type=int, help="trials at a time; as many as cores")
    parser.add_argument("--one", choices=("search", "tune"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    environment.prepare()
    if options.one is not None:
        run = measure if options.one == "search" else measure_tune
        try:
            print(json.dumps(run(options.trials[0], options.epochs, options.slots)))
        except KeyboardInterrupt:
            sys.exit(130)
        return
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "trials": lambda row: str(row["trials"]),
        "reports": lambda row: str(row["reports"]),
        "seconds a trial": lambda row: _of_both(row, "seconds", "per_trial"),
        "each further": lambda row: _of_both(row, "seconds", "per_further_trial"),
        "driver CPU a trial": lambda row: _of_both(row, "driver_cpu_seconds", "per_trial"),
        "each further ": lambda row: _of_both(row, "driver_cpu_seconds", "per_further_trial"),
        "ours ms": lambda row: f"{1000 * row['ours_seconds_per_trial']:.1f}",
        "proposal ms": lambda row: f"{1000 * row['proposal_seconds_of_last_quarter']:.1f}",
        "peak MiB": lambda row: f"{row['mib_peak']:.0f}\n{row['tune_mib_peak']:.0f}",
        "closing s": lambda row: f"{row['closing_seconds']:.1f}",
        "in MLflow": lambda row: str(row["mlflow_runs"]),
    }
    with report.Benchmark("scale", default_device(), 1, epochs=options.epochs) as benchmark:
        title = "Trials that only report: a search, Ray Tune alone, the difference"
        table = benchmark.table(*columns, title=title)
        for trials in options.trials:
            row: dict[str, Any] = {}
            for of in ("search", "tune"):
                benchmark.doing(f"{trials} trials: {of}")
                command = [sys.executable, "-m", "tests.benchmarks.scale", "--one", of]
                command += ["--trials", str(trials), "--epochs", str(options.epochs)]
                command += [] if options.slots is None else ["--slots", str(options.slots)]
                figures = report.figures_of(command)
                print(of, figures, flush=True)
                prefix = "" if of == "search" else "tune_"
                row |= {f"{prefix}{name}": figure for name, figure in figures.items()}
            smaller = benchmark.rows[-1] if benchmark.rows else dict.fromkeys(row, 0)
            further = row["trials"] - smaller["trials"]
            for figure in ("seconds", "driver_cpu_seconds"):
                for prefix in ("", "tune_"):
                    name = f"{prefix}{figure}"
                    row[f"{name}_per_trial"] = row[name] / row["trials"]
                    row[f"{name}_per_further_trial"] = (row[name] - smaller[name]) / further
            benchmark.add(row)
            table.add_row(*(text(row) for text in columns.values()))
        Console(width=120).print(table)


def _of_both(row: dict[str, Any], figure: str, per: str) -> str:
    """The search's, that of Tune alone, and the difference."""
    ours, tunes = row[f"{figure}_{per}"], row[f"tune_{figure}_{per}"]
    return f"{ours:.3f}\n{tunes:.3f}\n{ours - tunes:+.3f}"


if __name__ == "__main__":
    main()
