"""How often a waiting thread should poll before it sleeps: training steps by GOMP_SPINCOUNT.

    python -m tests.benchmarks.waiting [--polls 0 300 3000 30000 300000] [--rounds N]

Steps a second on all cores, of a small and a large network, on an idle machine, beside one process
that computes all the time, and beside one for each core. libgomp reads the number when it is
loaded, so each figure comes of a process of its own; they take turns, and medians are kept.
`search/environment.py` takes its number from this. `runs/bench/waiting.json` keeps the figures.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from kdcore.backbones.catalogue import build_backbone
from tests.benchmarks import report

# Name, batch, side of the images.
NETWORKS = (("resnet8", 64, 8), ("resnet8x4", 64, 32))
SECONDS = 3.0
# What a process of this module does that has this as its argument.
_MODULE = [sys.executable, "-m", "tests.benchmarks.waiting"]
_BUSY, _MEASURES = "--busy", "--measures"


def measure(name: str, batch: int, side: int) -> None:
    """Prints steps a second, and the seconds of the processor that one takes."""
    torch.set_num_threads(report.cores())
    network = build_backbone(name, num_classes=10, in_channels=3, seed=0, image_size=(side, side))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images, labels = torch.rand(batch, 3, side, side), torch.arange(batch) % 10

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()

    for _ in range(5):
        step()
    steps, started, used = 0, time.perf_counter(), time.process_time()
    while (seconds := time.perf_counter() - started) < SECONDS:
        step()
        steps += 1
    print(
        json.dumps({"rate": steps / seconds, "core_ms": 1e3 * (time.process_time() - used) / steps})
    )


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes compute meanwhile."""
    others = [subprocess.Popen([*_MODULE, _BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--polls", type=int, nargs="+", default=[0, 300, 3000, 30_000, 300_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(_BUSY, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(_MEASURES, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    parent = os.getppid()
    while options.busy:
        if os.getppid() != parent:  # it was killed
            return
    if options.measures is not None:
        measure(*NETWORKS[options.measures])
        return
    cores = report.cores()
    with report.Benchmark("waiting", torch.device("cpu"), cores) as benchmark:
        for others in sorted({0, 1, cores}):
            with busy(others):
                for number, (name, batch, side) in enumerate(NETWORKS):
                    found = defaultdict(list)
                    for turn in range(options.rounds):
                        benchmark.doing(f"{name}, {others} busy, round {turn + 1}")
                        for polls in options.polls:
                            os.environ["GOMP_SPINCOUNT"] = str(polls)
                            found[polls].append(
                                report.figures_of([*_MODULE, _MEASURES, str(number)])
                            )
                    for polls, figures in found.items():
                        benchmark.add(
                            {
                                "network": f"{name}, {batch} of {side}x{side}",
                                "busy": others,
                                "polls": polls,
                                "steps/s": statistics.median(each["rate"] for each in figures),
                                "core ms/step": statistics.median(
                                    each["core_ms"] for each in figures
                                ),
                            }
                        )
        benchmark.shown(title="Training steps by polls of a waiting thread", decimals=1)


if __name__ == "__main__":
    main()
