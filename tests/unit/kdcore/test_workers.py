"""Several processes that train one student: what they compute is what one process computes."""

import math
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed import TCPStore

from kdcore import DataConfig, EpochReport, Recipe, TeacherConfig, TermConfig, TrialConfig, distill
from kdcore.distillation.together import distill_together
from kdcore.errors import ConfigError
from kdcore.execution.synchronized_norms import SynchronizedNorms
from kdcore.execution.workers import OwnNumbers, Workers, joined, open_store
from kdcore.methods import CATALOGUE
from kdcore.training.checkpoint import read_checkpoint
from tests.cases import Case

CPU = torch.device("cpu")
EPOCHS = 2

# Of an odd batch, one process has an image more than the other.
BATCH = 25

# Rounding is 1e-15, and grows a little from step to step.
TOLERANCE = 1e-10

# Settings that read other outputs, compare other images or remember something.
SETTINGS: list[dict[str, Any]] = [
    {"method": "at", "params": {"kind": "gradient"}},
    {"method": "at", "params": {"kind": "flip symmetry", "reduction": "paper"}},
    {"method": "crd", "params": {"negatives": "queue", "negative_images": 32}},
    {"method": "crd", "params": {"negatives": "batch"}},
    {"method": "fitnet", "params": {"preparation_share": 0.5}},
    {"method": "ofd", "params": {"margin": "measured", "teacher_bn": "batch"}},
    {"method": "sp", "params": {"layers": "all", "batch_scaled": True}},
]

# Recipes and data whose steps are put together in other ways.
WAYS: list[dict[str, Any]] = [
    {"accumulation": 2, "batch_size": 13},
    {"gradient_clip_norm": 0.1, "optimizer": "adamw", "learning_rate": 0.001},
    {"ema_decay": 0.9, "label_smoothing": 0.1},
]

Job = Callable[..., list[EpochReport]]


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def train(
    config: TrialConfig, workspace: Path, folder: Path | None, parts: int, workers: Workers
) -> list[EpochReport]:
    kept = folder if workers.rank == 0 else None
    run = distill(
        config, workspace=workspace, checkpoint_dir=kept, device=CPU, parts=parts, workers=workers
    )
    return list(run)


def _of_rank(rank: int, port: int, jobs: Sequence[Job]) -> None:
    torch.set_num_threads(1)
    with float64(), joined(rank, 2, TCPStore("127.0.0.1", port), CPU) as workers:
        for job in jobs:
            job(workers=workers)


def with_two(jobs: Sequence[Job]) -> list[list[EpochReport]]:
    """Runs all jobs in this process and another one, in float64; returns what this one gave."""
    store = open_store("127.0.0.1")
    start = multiprocessing.get_context("spawn").Process
    other = start(target=_of_rank, args=(1, store.port, jobs), daemon=True)
    other.start()
    try:
        with float64(), joined(0, 2, store, CPU) as workers:
            done = [job(workers=workers) for job in jobs]
        other.join(60)
        assert other.exitcode == 0
    finally:
        other.kill()
    return done


def assert_same_reports(one: list[EpochReport], two: list[EpochReport]) -> None:
    """But for times, and for the rounding of floats."""
    assert len(one) == len(two) == EPOCHS
    for first, second in zip(map(asdict, one), map(asdict, two), strict=True):
        for name in first.keys() - {"epoch_seconds", "seconds_by_part"}:
            value, rounds = first[name], isinstance(first[name], float | dict)
            expected = pytest.approx(value, rel=1e-8, abs=TOLERANCE) if rounds else value
            assert second[name] == expected, name


def tensors(state: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors of a checkpoint, by where they are."""
    found = {path: state} if isinstance(state, Tensor) else {}
    inside = state.items() if isinstance(state, dict) else ()
    if isinstance(state, list | tuple):
        inside = enumerate(state)
    for key, value in inside:
        found |= tensors(value, f"{path}/{key}")
    return found


def assert_close(one: Path, two: Path) -> None:
    first, second = (tensors(read_checkpoint(each, CPU)) for each in (one, two))
    assert first.keys() == second.keys()
    assert len(first) > 20
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        off = (value - second[name]).abs().max().item()
        # Statistics of weights that have grown are known to so many digits.
        assert off <= TOLERANCE * max(1.0, value.abs().max().item()), (name, off)


@pytest.fixture(scope="module")
def configure() -> Callable[..., TrialConfig]:
    """Makes a trial's configuration from its terms: two steps an epoch."""
    data = {"name": "digits", "heldout_fraction": 0.05, "train_images": 2 * BATCH}
    teacher = {"epochs": 1, "batch_size": 32, "acceleration": "off"}

    def make(*terms: dict[str, Any], mixing: bool = False, **recipe: Any) -> TrialConfig:
        training = {"epochs": EPOCHS, "batch_size": BATCH, "acceleration": "off"}
        return TrialConfig.model_validate(
            {
                "data": data | ({"augmentation": ["mixup"]} if mixing else {}),
                "teacher_data": data if mixing else None,
                "teacher": {"backbone": "resnet14", "training": teacher},
                "student": "resnet8",
                "objective": terms,
                "training": training | {"sync_batch_norms": True} | recipe,
            }
        )

    return make


def test_two_processes_train_as_one_whatever_the_method(
    configure: Callable[..., TrialConfig], workspace: Path, tmp_path: Path
) -> None:
    """To 1e-10 in float64: reports, weights, helpers, memories, momentum, running statistics."""
    published = [{"method": name} for name in CATALOGUE]
    cases = {str(term): (configure(term), 1) for term in (*published, *SETTINGS)}
    pair = {"method": "rkd"}, {"method": "mgd"}
    cases |= {str(way): (configure(*pair, **way), 1) for way in WAYS}
    cases["in two parts"] = configure(*pair), 2
    reading = [{"method": n} for n, m in CATALOGUE.items() if m.mixing not in ("no labels", "refused")]
    cases["mixed images"] = configure(*reading, mixing=True), 1

    def jobs(by: str) -> list[Job]:
        return [
            partial(train, config, workspace, tmp_path / by / str(number), parts)
            for number, (config, parts) in enumerate(cases.values())
        ]

    for config, _ in cases.values():  # the only one that trains a teacher
        next(distill(config, workspace=workspace, device=CPU))
        break
    together = with_two(jobs("two"))
    with float64():
        alone = [job(workers=Workers()) for job in jobs("one")]
    for number, (case, one, two) in enumerate(zip(cases, alone, together, strict=True)):
        with Case(case):
            assert_same_reports(one, two)
            assert_close(tmp_path / "one" / str(number), tmp_path / "two" / str(number))
