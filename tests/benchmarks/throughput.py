"""Images that a distillation learns from in a second: ours against the field's training loop.

    python -m tests.benchmarks.throughput [--pairs TEACHER:STUDENT ...] [--images N] [--trials N]

Synthetic images, 3x32x32 of 100 classes, batch 64. Either side fills the machine as a search does
by default: a trial on each core, their rates added up; on a machine with a GPU one trial has it
all. `--trials 1` gives all cores to one. The reference is `reference.py`; its clock runs from after
a warm-up to its last step, so that the start of its workers does not count. Ours are whole epochs
of `kdcore.training.train`, with all that belongs to one: reading the cached outputs, augmentation,
meters, the evaluation of a single held-out image; the first epoch, which fills the cache, is the
warm-up. The sides take turns, each trial in a process of its own, and figures are medians. A table
is printed, and `runs/bench/throughput.json` written; the exit status is 1 if ours is slower than is
required.
"""

import argparse
import itertools
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

from kdcore import CacheConfig, DataConfig, EpochReport, Recipe, TermConfig
from kdcore.data.image_data import ImageData
from kdcore.data.split import TableSplit
from kdcore.distillation.distill import build_terms, network_pair
from kdcore.execution.execution import Execution
from kdcore.execution.fastest import fastest_execution
from kdcore.execution.workers import Workers
from kdcore.methods.at import AT
from kdcore.methods.kd import KD
from kdcore.networks.classifier import build_classifier, describe_classifier, save_classifier
from kdcore.networks.measurement import count_multiply_adds
from kdcore.teacher.teacher import WEIGHTS, load_teacher
from kdcore.teacher_cache.cache import TeacherCache
from kdcore.training.evaluation import default_device
from kdcore.training.loop import train
from tests.benchmarks import reference, report

# What the reference's processes start with is Python's own; ours find what trials find.
PLAIN = dict(os.environ)
from search import environment  # noqa: E402

environment.prepare()

# How many times the reference's images a second: with kd from a warm cache, on two cores.
REQUIRED = {
    "resnet32x4:resnet8x4": 6.0,
    "resnet56:resnet20": 4.0,
    "vgg13_cifar:vgg8": 5.0,
    "wrn_40_2:wrn_16_2": 5.0,
}
REQUIRED_WITH_AMX = REQUIRED | {"wrn_40_2:wrn_16_2": 6.0}
REQUIRED_ON_GPU = 8.0
REQUIRED_WITH_LIVE_TEACHER = 1.8

CLASSES, IMAGE_SIZE = 100, (32, 32)
LEARNING_RATE = 0.01  # random labels teach nothing, and must not lead to a loss that is not finite

# The loader's workers prefetch two batches each; what they made before the clock runs is used up.
WARMUP_STEPS = 5

# A square of this side is 0.14 TFLOP: enough to fill a GPU, and below a second on one core.
MATRIX_SIDE = 4096

MATRIX = "matrix"
SIDES = ("kd, reference", "kd, cached", "at, reference", "at, live", "at, cached", MATRIX)


def synthetic(images: int) -> ImageData:
    """Random pixels of random classes; one image is held out."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> TableSplit:
        pixels = torch.randint(256, (count, 3, *IMAGE_SIZE), generator=generator).byte()
        labels = torch.randint(CLASSES, (count,), generator=generator)
        return TableSplit(pixels, labels, torch.arange(count), 0, crop_padding=4, flip=True)

    return ImageData(
        config=DataConfig.model_construct(name="cifar100", views=1),
        train=split(images),
        heldout=split(1),
        test=split(1),
        class_names=tuple(map(str, range(CLASSES))),
        in_channels=3,
        image_size=IMAGE_SIZE,
        mean=(0.5,) * 3,
        std=(0.29,) * 3,
        digest=f"{images} random images",
    )


@dataclass(frozen=True)
class Pair:
    """A teacher with weights and a student, to be trained in either loop.

    Args:
        teacher: its name.
        student: its name.
        workspace: holds the teacher's weights, and gets its cache.
        execution: how the student computes in our loop.
        teacher_execution: how the teacher does.
    """

    teacher: str
    student: str
    workspace: Path
    execution: Execution
    teacher_execution: Execution

    @property
    def folder(self) -> Path:
        """Where the teacher lies."""
        return self.workspace / "teachers" / self.teacher


def prepared(name: str, data: ImageData, workspace: Path, device: torch.device) -> Pair:
    """Makes a teacher, and finds out how the student computes fastest."""
    teacher, student = name.split(":")
    learning, teaching = (
        build_classifier(network, data, seed=seed)
        for seed, network in enumerate((student, teacher))
    )
    size = data.image_size
    pair = Pair(
        teacher,
        student,
        workspace,
        fastest_execution(student, learning, size, device, workspace, batch_size=reference.BATCH),
        fastest_execution(teacher, teaching, size, device, workspace),
    )
    card = describe_classifier(teaching, teacher, data, {}, {})
    save_classifier(pair.folder, "teacher", teaching, card)
    return pair


def reference_rates(
    pair: Pair, method: str, data: ImageData, steps: int, workers: int
) -> Iterator[float]:
    """Images a second of the reference loop, measured anew whenever one is asked for."""
    if method == "kd":
        published = KD.Params()
        distance = reference.kd(published.weight, published.temperature)
    else:
        term = AT(AT.Params(), network_pair(pair.student, pair.teacher, data))
        distance = reference.at(term.params.weight, term.pairs)
    run = reference.ReferenceRun(
        build_classifier(pair.student, data, seed=0).backbone,
        load_teacher(pair.folder).backbone,
        distance,
        LEARNING_RATE,
        default_device(),
    )
    loader = reference.training_loader(data, workers)
    torch.backends.cudnn.benchmark = True
    while True:
        batches = iter(loader)
        for _ in range(WARMUP_STEPS):
            run.step(*next(batches))
        started = time.perf_counter()
        done = 0
        for images, labels in batches:
            run.step(images, labels)
            done += 1
            if done == steps:
                break
        seconds = time.perf_counter() - started
        del batches  # ends its workers
        yield done * reference.BATCH / seconds


def our_epochs(
    pair: Pair,
    method: str,
    data: ImageData,
    *,
    cached: bool,
    workers: Workers = Workers(),  # noqa: B008  (frozen)
) -> Iterator[EpochReport]:
    """A training of ours without an end; the processes after the first give no reports."""
    device = default_device()
    teacher = load_teacher(pair.folder)
    cache = TeacherCache(
        CacheConfig(max_gb=1e3),
        pair.workspace,
        teacher,
        pair.folder / WEIGHTS,
        data,
        device=device,
        execution=pair.teacher_execution,
    )
    setting = network_pair(pair.student, pair.teacher, data)
    yield from train(
        build_classifier(pair.student, data, seed=0),
        build_terms((TermConfig.model_validate({"method": method}),), setting, seed=0),
        teacher,
        data,
        Recipe(epochs=10**6, batch_size=reference.BATCH, learning_rate=LEARNING_RATE),
        seed=0,
        identity="benchmark",
        device=device,
        checkpoint_dir=None,
        execution=pair.execution,
        teacher_execution=pair.teacher_execution,
        cache=cache if cached else None,
        workers=workers,
    )


def our_rates(
    pair: Pair,
    method: str,
    data: ImageData,
    *,
    cached: bool,
    workers: Workers = Workers(),  # noqa: B008  (frozen)
) -> Iterator[float]:
    """Images a second of ours, likewise."""
    epochs = our_epochs(pair, method, data, cached=cached, workers=workers)
    next(epochs)
    images = len(data.train) // reference.BATCH * reference.BATCH
    while True:
        started = time.perf_counter()
        epoch = next(epochs)
        seconds = time.perf_counter() - started
        assert epoch.teacher == ("cached" if cached else "live")
        yield images / seconds


def matrix_rates() -> Iterator[float]:
    """Operations a second of a product of square bfloat16 matrices, likewise."""
    device = default_device()
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(MATRIX_SIDE, MATRIX_SIDE, generator=generator).bfloat16().to(device)
    right = left.t().contiguous()

    def seconds() -> float:
        started = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    seconds()
    while True:
        times = [seconds()]
        while sum(times) < 1.0:
            times.append(seconds())
        yield 2 * MATRIX_SIDE**3 / statistics.median(times)


def serve(side: str, pair: Pair, options: argparse.Namespace, pipe: Connection) -> None:
    """A trial's process: sends a figure whenever it is asked for one, until the pipe is closed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # with the loader's workers
    torch.set_num_threads(options.threads // options.trials)
    data = synthetic(options.images)
    method, _, how = side.partition(", ")
    if side == MATRIX:
        rates = matrix_rates()
    elif how == "reference":
        rates = reference_rates(
            pair, method, data, options.steps, options.workers // options.trials
        )
    else:
        rates = our_rates(pair, method, data, cached=how == "cached")
    next(rates)
    pipe.send("ready")
    with suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(next(rates))


@contextmanager
def unheard_interrupts() -> Iterator[None]:
    """What starts inside never hears Ctrl-C: it reaches all processes of a terminal at once, and
    whoever started them ends them."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def measured(
    pair: Pair, options: argparse.Namespace, doing: Callable[[str], None]
) -> dict[str, list[float]]:
    """The figures of every side, which take turns; each of its trials in a process of its own."""
    name = f"{pair.teacher}:{pair.student}"
    spawn = multiprocessing.get_context("spawn")
    figures: dict[str, list[float]] = {side: [] for side in SIDES}
    pipes: dict[str, list[Connection]] = {side: [] for side in SIDES}
    try:
        for side in SIDES:
            doing(f"{name}: warm-up of {side}")
            environment = PLAIN if side.endswith("reference") else dict(os.environ)
            for _ in range(options.trials):
                ours, theirs = spawn.Pipe()
                pipes[side].append(ours)
                process = spawn.Process(target=serve, args=(side, pair, options, theirs))
                with patch.dict(os.environ, environment, clear=True), unheard_interrupts():
                    process.start()
                theirs.close()
            assert all(pipe.recv() == "ready" for pipe in pipes[side])
        for turn in range(1, options.repetitions + 1):
            for side, trials in pipes.items():
                doing(f"{name}: {side}, {turn} of {options.repetitions}")
                for pipe in trials:
                    pipe.send("next")
                figures[side].append(sum(pipe.recv() for pipe in trials))
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        for pipe in itertools.chain.from_iterable(pipes.values()):
            pipe.close()
        for process in multiprocessing.active_children():
            process.join()
    return figures


def rows_of(
    name: str,
    data: ImageData,
    device: torch.device,
    options: argparse.Namespace,
    doing: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A row for each way to teach."""
    with tempfile.TemporaryDirectory() as workspace:
        doing(f"{name}: how the student computes fastest")
        pair = prepared(name, data, Path(workspace), device)
        figures = measured(pair, options, doing)
    medians = {side: statistics.median(values) for side, values in figures.items()}
    student = build_classifier(pair.student, data, seed=0).backbone
    # Forward, and backward by weights and by maps, are three passes; a multiply-add is two
    # operations.
    operations = 3 * 2 * count_multiply_adds(student, data.image_size)
    on_gpu = device.type == "cuda"
    with_amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    on_cpu = REQUIRED_WITH_AMX if with_amx else REQUIRED
    required = {
        "kd, cached": REQUIRED_ON_GPU if on_gpu else on_cpu.get(name),
        "at, live": None if on_gpu else REQUIRED_WITH_LIVE_TEACHER,
        "at, cached": None,
    }
    rows = []
    for side, least in required.items():
        other = f"{side.partition(',')[0]}, reference"
        ours, theirs = medians[side], medians[other]
        row: dict[str, Any] = {
            "pair": name,
            "method": side,
            "reference_images_per_second": theirs,
            "our_images_per_second": ours,
            "ratio": ours / theirs,
            "required_ratio": least,
            "holds": None if least is None else ours >= least * theirs,
            "bf16_tflops": medians[MATRIX] / 1e12,
            "share_of_bf16": operations * ours / medians[MATRIX],
            "every_figure": {"reference": figures[other], "ours": figures[side]},
            "student_execution": asdict(pair.execution),
            "teacher_execution": asdict(pair.teacher_execution),
        }
        if on_gpu:
            row["reference_epoch_seconds"] = 50_000 / theirs
            row["our_epoch_seconds"] = 50_000 / ours
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", nargs="*", default=list(REQUIRED), metavar="TEACHER:STUDENT")
    parser.add_argument("--images", type=int, default=2048, help="in an epoch of ours")
    parser.add_argument("--steps", type=int, default=8, help="of the reference, each time")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=report.cores())
    parser.add_argument("--trials", type=int, help="at once; they share the threads")
    parser.add_argument("--workers", type=int, help="of the reference's DataLoaders together")
    options = parser.parse_args()
    fewest = (WARMUP_STEPS + 1) * reference.BATCH
    if options.images < fewest:
        parser.error(f"--images is {options.images}, but must be at least {fewest}")
    device = default_device()
    on_gpu = device.type == "cuda"
    options.trials = options.trials or (1 if on_gpu else options.threads)
    options.workers = options.workers or max(2, options.trials)
    torch.set_num_threads(options.threads // options.trials)
    data = synthetic(options.images)
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "teacher:student": lambda row: row["pair"],
        "method": lambda row: row["method"],
        "reference images/s": lambda row: f"{row['reference_images_per_second']:.0f}",
        "ours images/s": lambda row: f"{row['our_images_per_second']:.0f}",
        "ratio": lambda row: f"{row['ratio']:.1f}",
        "required": lambda row: (
            ""
            if row["holds"] is None
            else f"{row['required_ratio']:g}: {'holds' if row['holds'] else 'MISSED'}"
        ),
        "of bf16 rate": lambda row: f"{row['share_of_bf16']:.1%}",
    }
    if on_gpu:
        columns["epoch of 50,000: reference s"] = lambda row: (
            f"{row['reference_epoch_seconds']:.1f}"
        )
        columns["ours s"] = lambda row: f"{row['our_epoch_seconds']:.2f}"
    with report.Benchmark("throughput", device, **vars(options)) as benchmark:
        table = benchmark.table(*columns, title="Throughput of distillation")
        for name in options.pairs:
            for row in rows_of(name, data, device, options, benchmark.doing):
                benchmark.add(row)
                table.add_row(*(text(row) for text in columns.values()))
        Console(width=130).print(table)
    sys.exit(any(row["holds"] is False for row in benchmark.rows))


if __name__ == "__main__":
    main()
