"""A search whose storage is a bucket, and images that lie in one: an S3 server on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import kdcore
from kdcore.data.image_data import ImageData, open_data
from search.experiment.schema import Resources
from search.record.files import read_record
from search.record.storage import Storage
from search.session.preparation import train_teacher
from tests.endurance.bucket import Bucket, running_bucket
from tests.endurance.outage import outlast
from tests.integration.commands import EAGER, Command, succeeded
from tests.unit.kdcore.photographs import rows_of, write_folders, write_parquet
from tests.unit.search.test_owner import TRIES, takers

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

START = EAGER + "from search.cli.app import main\nmain()\n"

# Longer than anyone tries at once.
SECONDS_AWAY = 60.0


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with running_bucket() as bucket:
        yield bucket


def test_a_search_with_its_storage_in_a_bucket_outlasts_its_absence(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (tmp_path / "start.py").write_text(START)
    place, home = ("--storage", bucket.uri), str(tmp_path / "home")
    search = Command(tmp_path, "start.py", "launch", "task.yaml", *place, HOME=home)
    storage = Storage(bucket.uri)
    assert "teacher: epoch 2/2" in outlast(search, storage, "task-1", bucket.away(), SECONDS_AWAY)
    record = read_record(storage, "task-1")
    assert record.state == "finished"
    assert [trial.epochs_done for trial in record.trials] == [EPOCHS] * 2
    kdcore.load_student(tmp_path / "runs/searches/task-1/best")
    board = succeeded(tmp_path, "leaderboard", "task-1", *place)
    assert "none (control)" in board
    # Another machine has neither tables nor teachers; it takes the teacher from the bucket.
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    assert (
        list(
            train_teacher(
                record.experiment.model_dump_json(),
                bucket.uri,
                Resources(),
                *record.experiment.teachers,
            )
        )
        == []
    )
    assert list((tmp_path / "elsewhere").rglob("teacher.json"))


def test_of_two_drivers_at_the_same_instant_one_takes_the_search(bucket: Bucket) -> None:
    for number in range(TRIES):
        assert takers(bucket.uri, f"one-{number}", new=True, at_once=2) == 1


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
