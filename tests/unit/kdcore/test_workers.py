"""Several processes that train one student: what they compute is what one process computes."""

import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcore import (
    CacheConfig,
    DataConfig,
    EpochReport,
    NonFiniteLossError,
    Recipe,
    TrialConfig,
    distill,
)
from kdcore.data.image_data import open_data
from kdcore.distillation.together import distill_together
from kdcore.errors import ConfigError
from kdcore.execution.synchronized_norms import SynchronizedNorms
from kdcore.execution.workers import OwnNumbers, Workers, joined, open_store, reach_store
from kdcore.methods import CATALOGUE
from kdcore.teacher.config import AnyTeacher
from kdcore.teacher.teacher import prepare_teacher
from kdcore.training.checkpoint import read_checkpoint
from tests.cases import Case
from tests.in_float64 import float64

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

NUMBERS = ("one", "two")

Job = Callable[..., Any]


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
    with float64(), joined(rank, 2, reach_store("127.0.0.1", port), CPU) as workers:
        for job in jobs:
            job(workers=workers)


def with_two(jobs: Sequence[Job]) -> list[Any]:
    """Runs all jobs in this process and another one, in float64; returns what this one gave."""
    store, port = open_store("127.0.0.1")
    start = multiprocessing.get_context("spawn").Process
    other = start(target=_of_rank, args=(1, port, jobs), daemon=True)
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
    """Makes a trial's configuration from its terms: a step an epoch, of all images but one."""
    data = {"name": "digits", "heldout_fraction": 0.05, "train_images": BATCH + 1}
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
    reading = [
        {"method": n} for n, m in CATALOGUE.items() if m.mixing not in ("no labels", "refused")
    ]
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


def keep_cut(config: TrialConfig, workspace: Path, folder: Path, workers: Workers) -> None:
    """Trains, and keeps the checkpoint of all epochs but the last beside the one of the end."""
    kept = folder if workers.rank == 0 else None
    for report in distill(
        config, workspace=workspace, checkpoint_dir=kept, device=CPU, workers=workers
    ):
        if report.epoch == EPOCHS - 1:
            shutil.copytree(folder, folder.with_name(f"{folder.name}-cut"))


def test_a_run_that_was_cut_off_goes_on_also_with_another_number_of_processes(
    configure: Callable[..., TrialConfig], workspace: Path, tmp_path: Path
) -> None:
    """With as many, to the bit; with others as close as rounding, where batch norms are those of
    all of them."""
    configs = {
        synced: configure({"method": "crd"}, {"method": "fitnet"}, sync_batch_norms=synced)
        for synced in (True, False)
    }
    ends = {synced: tmp_path / f"synced {synced}" for synced in configs}

    def resumed(synced: bool, by: str) -> Path:
        return shutil.copytree(f"{ends[synced]}-cut", tmp_path / f"{synced} by {by}")

    with_two([partial(keep_cut, configs[each], workspace, ends[each]) for each in configs])
    again = {synced: resumed(synced, "two") for synced in configs}
    with_two([partial(train, configs[each], workspace, again[each], 1) for each in configs])
    for synced in configs:
        first, second = (tensors(read_checkpoint(f[synced], CPU)) for f in (ends, again))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    with float64():
        alone = {synced: resumed(synced, "one") for synced in configs}
        for synced, folder in alone.items():
            train(configs[synced], workspace, folder, 1, Workers())
    assert_close(ends[True], alone[True])
    with pytest.raises(AssertionError, match=r"backbone|student"):
        assert_close(ends[False], alone[False])


def teach(config: dict[str, Any], data: dict[str, Any], folder: Path, workers: Workers) -> None:
    """Each process has a workspace of its own, as on machines that share nothing."""
    workspace = folder / str(workers.rank)
    teacher = TypeAdapter(AnyTeacher).validate_python(config)
    opened = open_data(DataConfig.model_validate(data), workspace)
    for _ in prepare_teacher(teacher, opened, workspace, CPU, workers):
        pass


def test_teachers_are_trained_by_two_processes_as_by_one(
    configure: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """Alone, of an ensemble, and by way of assistants, which the second process must be given."""
    data = configure().data.model_dump()
    training = {"epochs": 2, "batch_size": BATCH, "acceleration": "off", "sync_batch_norms": True}
    small = {"backbone": "resnet8", "training": training}
    teachers: list[dict[str, Any]] = [
        small,
        {"ensemble": [small, {"backbone": "resnet14", "training": training}]},
        {"backbone": "resnet14", "training": training, "assistants": ["resnet8"]},
    ]
    with_two([partial(teach, each, data, tmp_path / "two") for each in teachers])
    with float64():
        for each in teachers:
            teach(each, data, tmp_path / "one", Workers())
    found = [sorted((tmp_path / by / "0" / "teachers").glob("*/*.safetensors")) for by in NUMBERS]
    names = [[path.parent.name for path in paths] for paths in found]
    assert names[0] == names[1]
    assert len(names[0]) == 4
    for one, two in zip(*found, strict=True):
        first, second = load_file(one), load_file(two)
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=0, atol=TOLERANCE)
    assert not (tmp_path / "two" / "1" / "teachers").exists() or not list(
        (tmp_path / "two" / "1" / "teachers").glob("*/*.safetensors")
    )


def test_processes_of_this_machine_train_together(
    configure: Callable[..., TrialConfig], workspace: Path, tmp_path: Path
) -> None:
    """In float32, from the teacher's cached outputs; and what is wrong with it is told."""
    config = configure({"method": "rkd"}).model_copy(update={"cache": CacheConfig()})
    runs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        how: dict[str, Any] = {"workspace": workspace, "checkpoint_dir": folder, "device": CPU}
        runs.append(list(distill_together(config, processes, **how)))
        assert read_checkpoint(folder, CPU) is not None
    for one, two in zip(*runs, strict=True):
        assert (two.epoch, two.teacher) == (one.epoch, "cached" if one.epoch > 1 else two.teacher)
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-4)
    steep = configure({"method": "kd"}, learning_rate=1e30)
    with pytest.raises(NonFiniteLossError, match=r"is not finite (at|after) epoch"):
        list(distill_together(steep, 2, workspace=workspace, device=CPU))
    with pytest.raises(ConfigError, match="3 workers need at least 6, two images each"):
        Recipe(epochs=1, batch_size=5).check_workers(3)
    with pytest.raises(ConfigError, match="cuda_graph is true, but 2 workers exchange"):
        Recipe(epochs=1, cuda_graph=True).check_workers(2)
    with pytest.raises(ValidationError, match="compile is true, but sync_batch_norms"):
        Recipe(epochs=1, compile=True, sync_batch_norms=True)


def die(workspace: Path, folder: Path, workers: Workers) -> None:
    """The second process is killed; the first notes how its sum ends."""
    workers.total(torch.ones(1))
    if workers.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        workers.total(torch.ones(1))
    except RuntimeError as error:
        (folder / "error").write_text(str(error))


def test_the_others_are_told_when_a_process_dies(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="-9"):
        with_two([partial(die, workspace, tmp_path)])
    assert (tmp_path / "error").read_text()


def exchange(folder: Path, workers: Workers) -> None:
    """What processes give each other, noted in a file of each."""
    rank, own = workers.rank, OwnNumbers(workers)
    share = workers.share_of(5)
    rows = torch.arange(5.0)[share.first : share.first + share.images, None].expand(-1, 2)
    rows = rows.clone().requires_grad_()
    whole = workers.whole(rows, share)
    # Each process counts for its share: the gradient is that of one process with all rows.
    (share.images / 5 * whole.pow(3).sum()).backward()
    added = [torch.tensor([1.0 + rank]), torch.full((2, 2), 10.0 * rank)]
    workers.add_up(added)
    means = [torch.tensor([0.1, 1.0 + rank])]
    workers.average(means)
    least = torch.tensor([3 - rank, 5 + rank])
    workers.smallest(least)
    sent = workers.from_first(
        lambda: {"rank": rank, "none": None, "list": [torch.arange(3), "text", 0.5]}
    )
    torch.manual_seed(7)
    own.begin()
    drawn = [torch.rand(1).item()]
    with own.drawn():
        drawn.append(torch.rand(1).item())
    drawn.append(torch.rand(1).item())
    with own.drawn():
        drawn.append(torch.rand(1).item())
    found = {
        **{"whole": whole.detach(), "gradient": rows.grad, "rows": rows.detach()},
        **{"added": added, "means": means, "least": least, "sent": sent, "drawn": drawn},
    }
    torch.save(found, folder / str(rank))


def test_what_processes_exchange(tmp_path: Path) -> None:
    with_two([partial(exchange, tmp_path)])
    both = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    for found in both:
        assert torch.equal(found["whole"], torch.arange(5.0).double()[:, None].expand(-1, 2))
        assert torch.allclose(found["gradient"], 3 * found["rows"] ** 2, rtol=1e-12)
        assert [each.tolist() for each in found["added"]] == [[3.0], [[10.0, 10.0], [10.0, 10.0]]]
        assert found["means"][0].tolist() == [0.1, 1.5]
        assert found["least"].tolist() == [2, 5]
        assert found["sent"]["rank"] == 0
        assert found["sent"]["list"][0].tolist() == [0, 1, 2]
    one, two = (found["drawn"] for found in both)
    assert one[::2] == two[::2], "what all draw is the same"
    assert len({*one, *two}) == 6, "what each draws for itself is not"


def test_processes_find_each_other_at_one_address() -> None:
    store, port = open_store("127.0.0.2")
    reach_store("127.0.0.2", port).set("asked", "yes")
    assert store.get("asked") == b"yes"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_batch_is_divided_as_equally_as_can_be(number: int) -> None:
    for images in range(2 * number, 4 * number):
        shares = [Workers(rank, number).share_of(images) for rank in range(number)]
        covered = [n for share in shares for n in range(share.first, share.first + share.images)]
        assert covered == list(range(images))
        assert max(s.images for s in shares) - min(s.images for s in shares) <= 1


def test_synchronised_norms_of_one_process_are_batch_norms() -> None:
    """Values, running statistics, gradients and second ones, of any number of dimensions."""
    torch.manual_seed(0)
    for kind, size in ((nn.BatchNorm1d, (5, 3)), (nn.BatchNorm2d, (4, 3, 2, 5))):
        for settings in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}):
            plain, synced = (kind(3, **settings).double() for _ in range(2))
            values = 5 + torch.randn(size, dtype=torch.float64)
            for _ in range(2):
                inputs = [values.clone().requires_grad_() for _ in range(2)]
                expected = plain(inputs[0])
                with SynchronizedNorms(Workers()):
                    found = synced(inputs[1])
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
                second = []
                for out, each in ((expected, inputs[0]), (found, inputs[1])):
                    (slope,) = torch.autograd.grad(out.pow(3).sum(), each, create_graph=True)
                    slope.square().sum().backward()
                    second.append((slope.detach(), each.grad))
                torch.testing.assert_close(second[1], second[0], rtol=1e-9, atol=1e-9)
            for one, two in zip(plain.buffers(), synced.buffers(), strict=True):
                torch.testing.assert_close(two, one, rtol=1e-12, atol=0)
            plain.eval(), synced.eval()
            with SynchronizedNorms(Workers()):
                assert torch.equal(synced(values), synced(values))
                torch.testing.assert_close(synced(values), plain(values), rtol=1e-9, atol=1e-9)
    half = torch.randn(4, 3, 2, 2).bfloat16()
    with SynchronizedNorms(Workers()):
        found = nn.BatchNorm2d(3)(half)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, nn.BatchNorm2d(3)(half), rtol=0.02, atol=0.02)
