"""Trials that raise, once or for ever, or find no memory: they are tried again a few times, and the
search goes on."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.record import SearchRecord, read_record
from search.storage import Storage

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 1, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 3, "learning_rate": 0.1},
    "search": {"trials": 4, "asha": None},
}

# A user's bug, and a GPU too small for whole batches, in trials alone: what runs before them does
# not meet it.
LAUNCH = """
from pathlib import Path
from unittest.mock import patch

import torch

from kdcore.training import _Run
from search import launch
from search.cli import app
from search.trial import run_trial

add_gradients = _Run._add_gradients


def hungry(self, images, batch, *rest):
    if batch.epoch > 1 and len(images) > 32:
        raise torch.OutOfMemoryError("CUDA out of memory")
    add_gradients(self, images, batch, *rest)


def faulty(point, **settings):
    tries = Path(f"tries-{point['trial']}").absolute()
    with tries.open("a") as file:
        file.write("x")
    if point["trial"] == 1:
        raise RuntimeError("no such luck")
    if point["trial"] == 2 and len(tries.read_text()) == 1:
        raise RuntimeError("once")
    if point["trial"] == 3:
        with patch.object(_Run, "_add_gradients", hungry):
            run_trial(point, **settings)
    else:
        run_trial(point, **settings)


launch.run_trial = faulty
app(["launch", "task.yaml", "--name", "bugs"])
"""


def run_start(folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a folder's start.py, which must succeed."""
    done = subprocess.run(
        [sys.executable, "start.py"],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder after a search whose trial 1 always fails, and trial 2 at first; trial 3 has
    too little memory."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "start.py").write_text(LAUNCH.replace("tries-", f"{folder}/tries-"))
    done = run_start(folder)
    assert "trial 2 goes on from its checkpoint, after: once" in done.stdout
    assert "trial 1 failed (no such luck (4 tries))" in done.stdout
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> SearchRecord:
    return read_record(Storage(str(folder / "runs")), "bugs")


def test_who_fails_again_and_again_is_marked_with_the_reason(
    folder: Path, record: SearchRecord
) -> None:
    assert record.state == "finished"
    states = [trial.state for trial in record.trials]
    assert states == ["finished", "failed", "finished", "finished"]
    assert record.trials[1].reason == "no such luck (4 tries)"
    assert record.trials[2].reason == ""
    tries = [len((folder / f"tries-{number}").read_text()) for number in range(4)]
    assert tries == [1, 4, 2, 1]


def test_mlflow_knows_the_reason(record: SearchRecord) -> None:
    assert record.mlflow_experiment_id is not None
    client = MlflowClient(record.tracking_uri)
    runs = client.search_runs([record.mlflow_experiment_id], "tags.state = 'failed'")
    assert [run.data.tags["kdsearch.reason"] for run in runs] == ["no such luck (4 tries)"]
    assert [run.info.status for run in runs] == ["FAILED"]


def test_who_finds_too_little_memory_on_its_gpu_goes_on_with_batches_in_parts(
    folder: Path, record: SearchRecord
) -> None:
    assert [trial.parts for trial in record.trials] == [1, 1, 1, 2]
    assert record.trials[3].epochs_done == 3
    board = subprocess.run(
        [sys.executable, "-m", "search", "leaderboard", "bugs"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "finished, batches in 2 parts" in board.stdout


def memory() -> dict[str, int]:
    """The machine's, in KiB, as Linux names it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) for name, _, rest in (each.partition(":") for each in lines)}


GIB = 2**20  # in KiB

# In a container Ray counts what the container may take, not what the machine has.
LIMIT = Path("/sys/fs/cgroup/memory.max")
LIMITED = LIMIT.exists() and LIMIT.read_text().strip() != "max"

# Memory is taken in steps, so that Ray's monitor is in time; it looks every 100 ms.
GREEDY = """
import time
from pathlib import Path

from search import launch
from search.cli import app
from search.trial import run_trial


def greedy(point, **settings):
    tries = Path(f"tries-{point['trial']}").absolute()
    with tries.open("a") as file:
        file.write("x")
    if point["trial"] == 1 and len(tries.read_text()) == 1:
        taken = []
        for _ in range(36):
            taken.append(b"x" * 2**28)
            time.sleep(0.2)
        time.sleep(60)
    run_trial(point, **settings)


launch.run_trial = greedy
app(["launch", "task.yaml", "--name", "greedy", "--set", "search.trials=2"])
"""


@pytest.mark.skipif(
    LIMITED or memory()["MemAvailable"] < 10 * GIB, reason="needs 10 GiB, outside a container"
)
def test_a_machine_that_runs_out_of_memory_costs_no_trial(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (tmp_path / "start.py").write_text(GREEDY.replace("tries-", f"{tmp_path}/tries-"))
    known = memory()
    full = (known["MemTotal"] - known["MemAvailable"] + 5 * GIB) / known["MemTotal"]
    done = run_start(
        tmp_path, RAY_memory_usage_threshold=f"{full:.3f}", RAY_memory_monitor_refresh_ms="100"
    )
    assert "goes on from its checkpoint, after: the machine ran out of memory" in done.stdout
    record = read_record(Storage(str(tmp_path / "runs")), "greedy")
    assert [trial.state for trial in record.trials] == ["finished"] * 2
    assert len((tmp_path / "tries-1").read_text()) > 1
