"""A search whose disk is full for a while: no room for records, checkpoints, MLflow, logs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

import kdcore
from search.record import SearchRecord, read_record
from search.space import trial_config
from search.storage import Storage
from tests.integration.ray_cluster import wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk"),
]

EPOCHS = 60
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": EPOCHS, "learning_rate": 0.1},
    "search": {"trials": 3, "asha": None, "concurrent_trials": 2},
}

# More than the patience of what tries again, less than that of what waits.
SECONDS_FULL = 20


def fill(disk: Path) -> Path:
    """Writes a file that takes all the space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder, whose runs lie on a disk that was full for a while."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    disk = folder / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
    try:
        search = subprocess.Popen(
            [sys.executable, "-m", "search", "launch", "task.yaml", "--name", "full"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_until(lambda: search.poll() is not None or trains(disk), 180)
            filler = fill(disk)
            time.sleep(SECONDS_FULL)
            assert search.poll() is None, search.communicate()[0]
            filler.unlink()
            output, _ = search.communicate(timeout=300)
        finally:
            search.kill()
        assert search.returncode == 0, output
        assert "MLflow missed" not in output
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def trains(disk: Path) -> bool:
    """Whether a trial has begun."""
    if not (disk / "searches/full/search.json").exists():
        return False
    return bool(read_record(Storage(str(disk)), "full").trials)


@pytest.fixture(scope="module")
def record(folder: Path) -> SearchRecord:
    return read_record(Storage(str(folder / "runs")), "full")


def test_every_trial_finishes_with_the_reports_of_an_undisturbed_one(
    folder: Path, record: SearchRecord
) -> None:
    assert record.state == "finished"
    assert [trial.state for trial in record.trials] == ["finished"] * 3
    for trial in record.trials[:2]:
        config = trial_config(record.experiment, trial.point)
        reports = kdcore.distill(config, workspace=folder / "runs")
        assert trial.accuracies == tuple(report.heldout_accuracy for report in reports)


def test_mlflow_has_every_epoch_once(record: SearchRecord) -> None:
    assert record.mlflow_experiment_id is not None
    client = MlflowClient(record.tracking_uri)
    runs = client.search_runs([record.mlflow_experiment_id], "tags.`kdsearch.role` = 'trial'")
    assert len(runs) == 3
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "heldout_accuracy")
        assert sorted(entry.step for entry in history) == list(range(1, EPOCHS + 1))


def test_the_student_is_whole(folder: Path) -> None:
    kdcore.load_student(folder / "runs/searches/full/best")
