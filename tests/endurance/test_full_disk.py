"""A search whose disk is full for a while: no room for records, checkpoints, MLflow, logs."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import kdcore
from search.record.files import read_record
from search.record.record import SearchRecord
from search.record.storage import Storage
from tests.endurance.outage import outlast
from tests.integration import checks
from tests.integration.commands import EAGER, Command

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk; run as root"),
]

EPOCHS = 40
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": EPOCHS, "learning_rate": 0.1},
    "search": {"trials": 2, "asha": None, "concurrent_trials": 1},
}

START = EAGER + 'from search.cli.app import app\napp(["launch", "task.yaml", "--name", "full"])\n'

# Longer than anyone tries at once.
SECONDS_FULL = 40.0


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """A file takes all the space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    yield
    filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A user's folder for runs, on a disk of 64 MB."""
    disk = folder / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder, whose runs lie on a disk that was full for a while."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "start.py").write_text(START)
    with small_disk(folder) as disk:
        search = Command(folder, "start.py")
        said = outlast(search, Storage(str(disk)), "full", full(disk), SECONDS_FULL)
        assert "MLflow missed" not in said
        yield folder


@pytest.fixture(scope="module")
def record(folder: Path) -> SearchRecord:
    return read_record(Storage(str(folder / "runs")), "full")


def test_every_trial_finishes_with_the_reports_of_an_undisturbed_one(
    folder: Path, record: SearchRecord
) -> None:
    checks.every_trial_is_there_once_and_ended(record)
    checks.reports_are_those_of_undisturbed_trials(record, folder / "runs")


def test_mlflow_has_every_epoch_once(record: SearchRecord) -> None:
    checks.mlflow_has_every_epoch_once_and_in_order(record)


def test_the_student_is_whole(folder: Path) -> None:
    kdcore.load_student(folder / "runs/searches/full/best")
