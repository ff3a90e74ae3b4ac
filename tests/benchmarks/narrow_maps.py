"""Convolutions of narrow maps, plain and side by side: time of forward plus backward.

    python -m tests.benchmarks.narrow_maps [--batch N] [--threads N]

In bfloat16 and channels-last layout, which is where training lays maps side by side; the two take
turns. `kdcore.execution.side_by_side` takes its widths from this: measure again with another
processor, or another release of PyTorch. A table is printed, and `runs/bench/narrow_maps.json`
written.
"""

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from torch import nn

from kdcore.execution import side_by_side
from kdcore.execution.execution import Execution, keep_freed_memory
from tests.benchmarks import report

# Kernel, stride, channels in and out, side of the map: of CIFAR's networks, and beyond the widest.
CASES = (
    (3, 1, 512, 512, 2),
    (3, 1, 512, 512, 4),
    (3, 1, 256, 256, 8),
    (3, 1, 128, 128, 8),
    (3, 1, 64, 64, 8),
    (3, 2, 64, 128, 16),
    (3, 1, 256, 256, 14),
    (3, 1, 64, 64, 16),
    (1, 1, 512, 2048, 4),
    (1, 1, 256, 256, 8),
    (1, 2, 32, 64, 32),
    (1, 1, 64, 256, 16),
)
REPETITIONS = 9


def milliseconds(layer: nn.Conv2d, maps: torch.Tensor, answer: torch.Tensor) -> float:
    """Of one step, from the maps to the gradients of maps and weights."""
    maps.grad = layer.weight.grad = None
    started = time.perf_counter()
    layer(maps).backward(answer)
    return 1e3 * (time.perf_counter() - started)


def measure(kernel: int, stride: int, inputs: int, outputs: int, side: int, batch: int) -> Any:
    """A row of the table."""
    plain = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False).bfloat16()
    network = nn.Sequential(copy.deepcopy(plain))
    cpu = torch.device("cpu")
    Execution(channels_last=True).place(plain, cpu)
    Execution(channels_last=True, side_by_side=True).place(network, cpu)
    (beside,) = network
    maps = torch.randn(batch, inputs, side, side).bfloat16()
    maps = maps.to(memory_format=torch.channels_last).requires_grad_()
    answer = torch.randn_like(plain(maps))
    for layer in (plain, beside):
        milliseconds(layer, maps, answer)
    turns = [
        [milliseconds(layer, maps, answer) for layer in (plain, beside)] for _ in range(REPETITIONS)
    ]
    plain_ms, beside_ms = map(statistics.median, zip(*turns, strict=True))
    return {
        "convolution": f"{kernel}x{kernel}, stride {stride}, {inputs} to {outputs}",
        "maps": f"{side}x{side}",
        "plain_ms": plain_ms,
        "side_by_side_ms": beside_ms,
        "times_faster": plain_ms / beside_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    # All of them, also those that a network would leave as they are.
    side_by_side.WIDEST = max(side for *_, side in CASES)
    columns = ("convolution", "maps", "plain ms", "side by side ms", "times faster")
    with report.Benchmark(
        "narrow_maps", torch.device("cpu"), options.threads, batch=options.batch
    ) as benchmark:
        table = benchmark.table(*columns, title="Convolutions of narrow maps")
        for number, case in enumerate(CASES, start=1):
            benchmark.doing(f"convolution {number} of {len(CASES)}")
            row = measure(*case, options.batch)
            benchmark.add(row)
            figures = (row["plain_ms"], row["side_by_side_ms"], row["times_faster"])
            table.add_row(row["convolution"], row["maps"], *(f"{figure:.2f}" for figure in figures))
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
