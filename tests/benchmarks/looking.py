"""What looking at a search costs: leaderboard and pictures against the number of trials.

    python -m tests.benchmarks.looking [--trials N ...] [--epochs N]

Made-up searches whose trials have whole learning curves. The command's seconds are wall-clock, from
its start to its end; all others are processor seconds in one process that has the record and has
imported everything. A row for each size is printed, and `runs/bench/looking.json` written.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import optuna
from rich.console import Console

from kdcore.training.evaluation import default_device
from search.leaderboard.formats import as_bytes
from search.leaderboard.progress import how_far
from search.leaderboard.tables import leaderboard_table
from search.record.record import SearchRecord
from search.record.storage import Storage
from search.report.plots.drawings import DRAWINGS, Drawing, png
from search.report.summary import summary
from search.tracking.runs_table import runs_table
from tests.benchmarks import report
from tests.records import write_record
from tests.synthetic import made_up_search


def _processor_seconds(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started


def _command_seconds(record: SearchRecord) -> float:
    """Of `kdsearch leaderboard`, with the reading of the record."""
    with tempfile.TemporaryDirectory() as folder:
        write_record(Storage(folder), record)
        words = ["leaderboard", record.name, "--storage", folder]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "search", *words], check=True, capture_output=True)
        return time.perf_counter() - started


def _drawn(drawing: Drawing, record: SearchRecord) -> Callable[[], object]:
    return lambda: png(drawing, record)


def measure(record: SearchRecord) -> dict[str, Any]:
    """The seconds of everything that shows a search."""
    screen = Console(file=io.StringIO(), width=160)
    shown: dict[str, Callable[[], object]] = {
        "table": lambda: screen.print(leaderboard_table(record)),
        "json": lambda: as_bytes(record, "json"),
        "parquet": lambda: as_bytes(record, "parquet"),
        "how_far": lambda: how_far(record),
        "runs_table": lambda: runs_table(record),
        "summary": lambda: summary(record),
        **{name: _drawn(drawing, record) for name, drawing in DRAWINGS.items()},
    }
    seconds = {f"{name}_seconds": _processor_seconds(act) for name, act in shown.items()}
    return {
        "trials": len(record.trials),
        "command_seconds": _command_seconds(record),
        **seconds,
        "pictures_seconds": sum(seconds[f"{name}_seconds"] for name in DRAWINGS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--epochs", type=int, default=30, help="of a whole trial")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with report.Benchmark("looking", default_device(), 1, epochs=options.epochs) as benchmark:
        benchmark.doing("a small search, to import everything")
        measure(made_up_search(12))
        for trials in options.trials:
            benchmark.doing(f"a search of {trials} trials")
            benchmark.add(measure(made_up_search(trials, epochs=options.epochs)))


if __name__ == "__main__":
    main()
