"""Images that one student learns from in a second, by one process and by several.

    python -m tests.benchmarks.workers [--pair TEACHER:STUDENT] [--images N] [--processes N ...]

As `throughput`: synthetic images, batch 64, whole epochs of kd from a warm cache; each process has
a GPU or, without any, one thread. The first row with all threads is what one process makes of the
same cores. The rows take turns, and figures are medians. A table is printed, and
`runs/bench/workers.json` written.
"""

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from kdcore.execution.workers import joined, open_store, reach_store
from kdcore.training.evaluation import default_device
from tests.benchmarks import report
from tests.benchmarks.reference import BATCH
from tests.benchmarks.throughput import Pair, our_epochs, our_rates, prepared, synthetic

TURNS = 3
HERE = "127.0.0.1"
METHOD = "kd"


class Row(NamedTuple):
    """What is measured: processes, and the threads of each."""

    processes: int
    threads: int


def _device(rank: int) -> torch.device:
    kind = default_device().type
    return torch.device(kind, rank) if kind == "cuda" else torch.device(kind)


def _along(rank: int, row: Row, port: int, pair: Pair, images: int) -> None:
    """What the processes after the first do, until they are ended."""
    torch.set_num_threads(row.threads)
    with joined(rank, row.processes, reach_store(HERE, port), _device(rank)) as workers:
        for _ in our_epochs(pair, METHOD, synthetic(images), cached=True, workers=workers):
            pass


@contextmanager
def rates(row: Row, pair: Pair, images: int) -> Iterator[Iterator[float]]:
    """Images a second, measured anew whenever one is asked for, until the end of the block."""
    torch.set_num_threads(row.threads)
    data, measure = synthetic(images), partial(our_rates, pair, METHOD, cached=True)
    if row.processes == 1:
        yield measure(data=data)
        return
    store, port = open_store(HERE)
    start = multiprocessing.get_context("spawn").Process
    with ExitStack() as stack:
        for rank in range(1, row.processes):
            other = start(target=_along, args=(rank, row, port, pair, images), daemon=True)
            other.start()
            stack.callback(other.kill)
        workers = stack.enter_context(joined(0, row.processes, store, _device(0)))
        yield measure(data=data, workers=workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", default="resnet32x4:resnet8x4", metavar="TEACHER:STUDENT")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    device = default_device()
    rows = [Row(number, 1) for number in options.processes]
    if device.type == "cpu":
        rows.insert(0, Row(1, report.cores()))
    with (
        report.Benchmark("workers", device, 1, batch=BATCH, pair=options.pair) as benchmark,
        tempfile.TemporaryDirectory() as folder,
    ):
        torch.set_num_threads(1)
        pair = prepared(options.pair, synthetic(options.images), Path(folder), device)
        found: dict[Row, list[float]] = {row: [] for row in rows}
        for turn in range(TURNS):
            for row in rows:
                benchmark.doing(f"turn {turn + 1} of {TURNS}, {row.processes} processes")
                with rates(row, pair, options.images) as measured:
                    found[row].append(next(measured))
        columns = ("processes", "threads each", "images/s", "times one process")
        table = benchmark.table(*columns, title=f"{options.pair}, {METHOD}, cached")
        alone = statistics.median(found[rows[1 if device.type == "cpu" else 0]])
        for row, every in found.items():
            rate = statistics.median(every)
            figures: dict[str, Any] = {**row._asdict(), "images_per_second": rate, "every": every}
            benchmark.add(figures)
            table.add_row(*map(str, row), f"{rate:.0f}", f"{rate / alone:.2f}")
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
