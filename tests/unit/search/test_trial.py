"""A trial without Ray: memory and disks that do not suffice."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import tune

import search.session.trial
from kdcore import EpochReport, distill
from kdcore.execution.execution import Execution
from kdcore.methods.kd import KD
from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment
from search.experiment.space.point import NUMBER
from search.record.networks import Executions
from search.record.record import REPORT, SAVED
from search.record.storage import Storage
from search.session.retraining.retraining import run_again
from search.session.trial import run_trial

EPOCHS = 4
POINT = {"objective.1": "kd", NUMBER: 3}


@pytest.fixture
def experiment() -> Experiment:
    return parse_experiment(
        {
            "name": "test",
            "data": {"name": "digits", "heldout_fraction": 0.05, "train_images": 64},
            "teacher": {"backbone": "resnet8", "training": {"epochs": 1}},
            "student": "resnet8",
            "objective": [["none", "kd"]],
            "training": {"epochs": EPOCHS, "acceleration": "off"},
            "search": {"trials": 1},
        },
        "test",
    )


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What trials tell Tune."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", told.append)
    monkeypatch.setattr(search.session.trial, "RETRY_SECONDS", 0.0)
    return told


def run(experiment: Experiment, folder: Path) -> None:
    run_trial(
        POINT, experiment_json=experiment.model_dump_json(), storage_uri=str(folder), search="s"
    )


def test_trial_and_confirmation_compute_as_the_search_decided(
    experiment: Experiment,
    reports: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []

    def noted(*arguments: Any, **settings: Any) -> Iterator[EpochReport]:
        given.append((settings["execution"], settings["teacher_execution"]))
        return distill(*arguments, **settings)

    monkeypatch.setattr(search.session.trial, "distill", noted)
    student, teacher = Execution("bfloat16"), Execution(channels_last=True)
    what: dict[str, Any] = {
        "experiment_json": experiment.model_dump_json(),
        "storage_uri": str(tmp_path),
        "executions": Executions(students={"resnet8": student}, teacher=teacher),
    }
    run_trial(POINT, search="s", **what)
    run_again(POINT, 7, folder="again", **what)
    assert given == [(student, teacher)] * 2


def test_a_trial_too_large_for_the_memory_goes_on_with_halved_batches(
    experiment: Experiment,
    reports: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = KD.forward

    def hungry(self: KD, student: Any, teacher: Any, batch: Any) -> torch.Tensor:
        if batch.epoch >= 3 and len(batch.labels) > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, student, teacher, batch)

    monkeypatch.setattr(KD, "forward", hungry)
    run(experiment, tmp_path)
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4]
    assert [report[REPORT].parts for report in reports] == [1, 1, 2, 2]


def test_a_trial_too_large_even_with_halved_batches_fails(
    experiment: Experiment,
    reports: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def hungry(self: KD, student: Any, teacher: Any, batch: Any) -> torch.Tensor:
        seen.append(len(batch.labels))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(KD, "forward", hungry)
    with pytest.raises(torch.OutOfMemoryError):
        run(experiment, tmp_path)
    assert seen == [64, 32]
    assert reports == []


def test_out_of_memory_the_cached_outputs_leave_the_gpu_first(
    experiment: Experiment,
    reports: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if there were a GPU: it suffices without them, and then only for halved batches."""
    tried: list[tuple[bool, int]] = []
    forward = KD.forward

    def noted(*arguments: Any, **settings: Any) -> Iterator[EpochReport]:
        tried.append((settings["cache_on_device"], settings["parts"]))
        return distill(*arguments, **settings)

    def hungry(self: KD, student: Any, teacher: Any, batch: Any) -> torch.Tensor:
        on_device, _ = tried[-1]
        if (batch.epoch >= 2 and on_device) or (batch.epoch >= 3 and len(batch.labels) > 32):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, student, teacher, batch)

    monkeypatch.setattr(KD, "forward", hungry)
    monkeypatch.setattr(search.session.trial, "distill", noted)
    monkeypatch.setattr("search.session.trial.device_memory", lambda device: 1)
    run(experiment, tmp_path)
    assert tried == [(True, 1), (False, 1), (False, 2)]
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4]
    assert [report[REPORT].parts for report in reports] == [1, 1, 2, 2]


def test_a_trial_waits_for_a_full_disk_and_repeats_no_epoch(
    experiment: Experiment,
    reports: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its local disk is full after two epochs, twice; then there is room."""
    failures = iter([2, 2])

    def on_a_full_disk(*arguments: Any, **settings: Any) -> Iterator[EpochReport]:
        last = next(failures, EPOCHS)
        for report in distill(*arguments, **settings):
            yield report
            if report.epoch == last < EPOCHS:
                break
        else:
            return
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(search.session.trial, "distill", on_a_full_disk)
    run(experiment, tmp_path)
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4]
    assert reports[-1][SAVED] == EPOCHS


def test_another_failure_of_the_system_ends_the_try(
    experiment: Experiment,
    reports: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*arguments: Any, **settings: Any) -> Iterator[EpochReport]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield

    monkeypatch.setattr(search.session.trial, "distill", forbidden)
    with pytest.raises(PermissionError):
        run(experiment, tmp_path)


def test_slow_copies_of_checkpoints_take_a_small_share_of_the_time(
    experiment: Experiment,
    reports: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A minute an epoch, half a minute a copy."""
    now = 0.0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

    def epochs(*arguments: Any, **settings: Any) -> Iterator[EpochReport]:
        nonlocal now
        for report in distill(*arguments, **settings):
            now += 60
            yield report

    class SlowStorage(Storage):
        def copy_in(self, local: Path, path: str) -> None:
            nonlocal now
            now += 30
            super().copy_in(local, path)

    monkeypatch.setattr(search.session.trial, "time", Clock)
    monkeypatch.setattr(search.session.trial, "distill", epochs)
    monkeypatch.setattr(search.session.trial, "Storage", SlowStorage)
    longer = experiment.training.model_copy(update={"epochs": 40})
    run(experiment.model_copy(update={"training": longer}), tmp_path)
    assert 3 <= len({report[SAVED] for report in reports} - {0}) <= 5
