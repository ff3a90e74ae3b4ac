"""Every method's loss against its naive twin: time and memory of forward plus backward.

    python -m tests.benchmarks.losses [--only NAME ...] [--threads N]

Inputs are the reference shapes: batch 64, maps 32x32x32, 64x32x32, 128x16x16 and 256x8x8,
embeddings of width 256, 100 classes, and for contrast 16,384 negatives of 50,000 images. Settings
are the published ones. Memory is the peak above what the inputs take. The error is how far, in
float64 and for eight images, loss and gradients are from the twin's, as a share of these. On a
machine with a GPU everything runs there. A table is printed, and `runs/bench/losses.json` written.
"""

import argparse
import importlib
import inspect
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

# Threads that spin while they wait measure the neighbours on a shared machine, not the loss.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.console import Console
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from kdcore.methods import CATALOGUE
from kdcore.training.evaluation import default_device
from tests.benchmarks import report

MAPS = ((32, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8))
BATCH, EMBEDDING, CLASSES, NEGATIVES, IMAGES, BANK_WIDTH = 64, 256, 100, 16_384, 50_000, 128

# Settings of a loss that its method derives from others.
DERIVED = {"angle_weight": 50.0, "intraclass_weight": 2.0}

FEW = 8  # images, of which the error is told
REPETITIONS = 7
MOST_OPERATIONS = 5_000
SLOW_SECONDS = 2.0  # a twin that takes longer is timed once


def tensor_of(  # noqa: PLR0912  (one branch a kind of input)
    name: str, case: tuple[int, ...], batch: int, device: torch.device
) -> Tensor:
    """An input by the name of its parameter: what it is called says what it is."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    rows = torch.nn.functional.normalize
    match name:
        case "labels":
            made = torch.randint(CLASSES, (batch,), generator=generator)
        case "positions":
            made = torch.randint(IMAGES, (batch, 1 + NEGATIVES), generator=generator)
        case "student_bank" | "teacher_bank":
            made = rows(normal(IMAGES, BANK_WIDTH))
        case "log_normalizers":
            made = torch.full((2,), 11.0)
        case "temperature":
            made = torch.tensor(4.0)
        case "cost":
            made = torch.rand(CLASSES, CLASSES, generator=generator)
        case "margin":
            made = -torch.rand(case[0], generator=generator)
        case "raw_variances":
            made = normal(case[0])
        case _ if name.endswith("_logits"):
            made = 3 * normal(batch, CLASSES)
        case _ if name.endswith("_embedding"):
            # The banks' side takes embeddings that are projected and scaled already.
            made = (
                rows(normal(batch, BANK_WIDTH)) if case == (BANK_WIDTH,) else normal(batch, *case)
            )
        case _ if "_lower_" in name:
            made = normal(batch, *MAPS[MAPS.index(case) - 1]).relu()
        case _:
            made = normal(batch, *case)
            if name.endswith("_map"):
                made = made.relu()
    made = made.to(device)
    constant = ("teacher", "labels", "positions", "margin", "cost", "log_", "student_bank")
    if made.is_floating_point() and not name.startswith(constant):
        made.requires_grad_()
    return made


def cases_of(parameters: list[str]) -> list[tuple[tuple[int, ...], int]]:
    """The shapes and batch sizes that a loss is measured at."""
    if "positions" in parameters:
        return [((BANK_WIDTH,), BATCH)]
    if any(name.endswith("_logits") for name in parameters):
        return [((CLASSES,), BATCH)]
    if any(name.endswith("_embedding") for name in parameters):
        return [((EMBEDDING,), BATCH), ((EMBEDDING,), 2 * BATCH)]
    maps = MAPS[1:] if any("_lower_" in name for name in parameters) else MAPS
    return [(size, BATCH) for size in maps]


def median_seconds(step: Callable[[], None], device: torch.device) -> float:
    """The median of several runs, after one to warm up; a slow step is timed once."""
    times = []
    for _ in range(1 + REPETITIONS):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
        if times[0] > SLOW_SECONDS:
            return times[0]
    return statistics.median(times[1:])


class _Counter(TorchDispatchMode):
    """Counts operations."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def peak_bytes(step: Callable[[], None], device: torch.device) -> float:
    """The most memory that a step holds at a time, above what was there before.

    NaN for a twin that loops over pairs of images: its tensors are small, and on the CPU the record
    of its hundred thousands of operations is not.
    """
    with _Counter() as counted:
        step()
    if counted.operations > MOST_OPERATIONS:
        return math.nan
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return float(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    assert watched.profiler is not None
    events: Any = watched.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0.0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def relative_error(
    ours: Callable[..., Tensor],
    twin: Callable[..., Tensor],
    inputs: list[Tensor],
    numbers: dict[str, Any],
) -> float:
    """The largest of loss and gradients, in float64."""
    found = []
    for loss in (ours, twin):
        leaves = [
            each.detach().double().requires_grad_(each.requires_grad)
            if each.is_floating_point()
            else each
            for each in inputs
        ]
        value = loss(*leaves, **numbers)
        learnt = [each for each in leaves if each.requires_grad]
        gradients = torch.autograd.grad(value, learnt, allow_unused=True)
        found.append([value, *(each for each in gradients if each is not None)])
    return max(
        float(((mine - theirs).norm() / theirs.norm().clamp(min=1e-300)).detach())
        for mine, theirs in zip(*found, strict=True)
    )


def measure(
    name: str, device: torch.device, benchmark: report.Benchmark
) -> Iterator[dict[str, Any]]:
    """A row for each case of a method: ours and the twin's, one after the other."""
    ours = getattr(importlib.import_module(f"kdcore.methods.{name}"), f"{name}_loss")
    twin = getattr(importlib.import_module(f"tests.twins.{name}"), f"naive_{name}")
    published = CATALOGUE[name].Params()
    parameters = inspect.signature(ours).parameters.values()
    tensors = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    numbers = {
        p.name: DERIVED[p.name] if p.name in DERIVED else getattr(published, p.name)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name != "mixed"  # images are not
    }
    rows: list[dict[str, Any]] = []
    cases = cases_of(tensors)
    for case, batch in cases:
        inputs = [tensor_of(tensor, case, batch, device) for tensor in tensors]

        def step(
            loss: Callable[..., Tensor], inputs: list[Tensor] = inputs, numbers: Any = numbers
        ) -> None:
            torch.autograd.backward(loss(*inputs, **numbers))
            for tensor in inputs:
                tensor.grad = None

        row: dict[str, Any] = {"method": name, "batch": batch, "shape": "x".join(map(str, case))}
        for side, loss in (("ours", ours), ("twin", twin)):
            benchmark.doing(f"{name}, batch {batch}, {row['shape']}: {side}")
            row[f"{side}_ms"] = 1e3 * median_seconds(lambda loss=loss: step(loss), device)
            row[f"{side}_mib"] = peak_bytes(lambda loss=loss: step(loss), device) / 2**20
        few = [tensor_of(tensor, case, FEW, device) for tensor in tensors]
        row["error"] = relative_error(ours, twin, few, numbers)
        rows.append(row)
        yield row | ratios(row)
    if cases[0][1] == cases[-1][1] and len(cases) > 1:  # what a student with all these maps pays
        figures = ("ours_ms", "ours_mib", "twin_ms", "twin_mib")
        together = {figure: sum(row[figure] for row in rows) for figure in figures}
        together["error"] = max(row["error"] for row in rows)
        yield {"method": name, "batch": BATCH, "shape": "all of them"} | together | ratios(together)


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """How many times as fast, and as small, ours is."""
    return {
        "times_faster": row["twin_ms"] / row["ours_ms"],
        "times_smaller": row["twin_mib"] / row["ours_mib"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="methods; all of them where it is left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = default_device()
    names = options.only or [name for name, method in CATALOGUE.items() if method.needs]
    columns = ("method", "batch", "shape", "ours ms", "twin ms", "faster", "ours MiB", "twin MiB")
    with report.Benchmark("losses", device, options.threads) as benchmark:
        table = benchmark.table(*columns, "smaller", "error", title="Losses and their naive twins")
        for name in names:
            for row in measure(name, device, benchmark):
                known = {
                    key: None if isinstance(value, float) and math.isnan(value) else value
                    for key, value in row.items()
                }
                benchmark.add(known)
                table.add_row(
                    row["method"],
                    str(row["batch"]),
                    row["shape"],
                    f"{row['ours_ms']:.2f}",
                    f"{row['twin_ms']:.1f}",
                    f"{row['times_faster']:.1f}",
                    f"{row['ours_mib']:.1f}",
                    f"{row['twin_mib']:.1f}",
                    f"{row['times_smaller']:.1f}",
                    f"{row['error']:.0e}",
                )
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
