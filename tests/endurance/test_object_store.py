"""A search whose storage is a bucket, and images that lie in one: an S3 server on this machine."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import kdcore
from kdcore.data import ImageData, open_data
from search.record import SearchRecord, read_record
from search.storage import Storage
from search.trial import train_teacher
from tests.endurance.bucket import Bucket, running_bucket
from tests.integration.commands import EAGER, Command, succeeded
from tests.unit.kdcore.photographs import rows_of, write_folders, write_parquet

pytestmark = pytest.mark.integration

EPOCHS = 40
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "cache": None,
    "training": {"epochs": EPOCHS, "learning_rate": 0.1},
    "search": {"trials": 2, "asha": None, "concurrent_trials": 1},
}

START = EAGER + "from search.cli import main\nmain()\n"

# Longer than anyone tries at once.
SECONDS_AWAY = 60.0


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with running_bucket() as bucket:
        yield bucket


def outlast_an_absence(bucket: Bucket, folder: Path, seconds: float) -> SearchRecord:
    """Runs a search to its end, whose storage is a bucket that is away for a while."""
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "start.py").write_text(START)
    home = str(folder / "home")
    search = Command(folder, "start.py", "launch", "task.yaml", "--storage", bucket.uri, HOME=home)
    storage = Storage(bucket.uri)

    def trains() -> bool:
        if not storage.exists("searches/task-1/search.json"):
            return False
        return bool(read_record(storage, "task-1").trials)

    try:
        search.wait_until(trains)
        bucket.stop()
        time.sleep(seconds)
        assert search.is_running(), search.stdout + search.stderr
        bucket.start()
        done = search.wait()
    finally:
        search.send(signal.SIGKILL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "teacher: epoch 2/2" in done.stdout
    return read_record(storage, "task-1")


def test_a_search_with_its_storage_in_a_bucket_outlasts_its_absence(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = outlast_an_absence(bucket, tmp_path, SECONDS_AWAY)
    assert record.state == "finished"
    assert [trial.epochs_done for trial in record.trials] == [EPOCHS] * 2
    kdcore.load_student(tmp_path / "runs/searches/task-1/best")
    board = succeeded(tmp_path, "leaderboard", "task-1", "--storage", bucket.uri)
    assert "none (control)" in board
    # Another machine has neither tables nor teachers; it takes the teacher from the bucket.
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    assert list(train_teacher(record.experiment.model_dump_json(), bucket.uri, threads=1)) == []
    assert list((tmp_path / "elsewhere").rglob("teacher.json"))


def test_images_are_read_out_of_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    files = write_folders(tmp_path / "files", {"train": 16, "test": 4})
    for part in ("train", "test"):
        write_parquet(tmp_path / f"rows/{part}-{{}}.parquet", rows_of(files / part), files=2)
    bucket.upload(tmp_path / "rows")

    def opened(name: str, root: Path | str) -> ImageData:
        config = kdcore.DataConfig(name=name, root=root, image_size=(32, 32), heldout_fraction=0.25)
        return open_data(config, tmp_path)

    remote, local = opened("parquet", bucket.uri), opened("image_folder", files)
    assert (remote.mean, remote.std) == (local.mean, local.std)
    order = remote.train.shuffled()
    for ours, theirs in zip(
        remote.train.views(order, 5, 16), local.train.views(order, 5, 16), strict=True
    ):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="cannot be read"):
        opened("parquet", bucket.uri.replace("/kdsearch/", "/absent/"))
