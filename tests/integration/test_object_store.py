"""A search whose storage is a bucket, and images that lie in one: an S3 server on this machine."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import pytest
import torch
import yaml
from moto.server import ThreadedMotoServer
from pyarrow import fs

import kdcore
from kdcore.data import ImageData, open_data
from search.record import SearchRecord, read_record
from search.storage import RETRY_SECONDS, Storage
from search.trial import train_teacher
from tests.integration.commands import EAGER, Command, succeeded
from tests.unit.kdcore.photographs import rows_of, write_folders, write_parquet

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("object store")]

EPOCHS = 40
EXPERIMENT: dict[str, Any] = {
    "teacher": {"backbone": "resnet8", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "cache": None,
    "training": {"epochs": EPOCHS, "learning_rate": 0.1},
    "search": {"trials": 2, "asha": None, "concurrent_trials": 1},
}

START = EAGER + "from search.cli import main\nmain()\n"

# Whoever waits for the bucket looks several times in vain.
SECONDS_AWAY = 3 * RETRY_SECONDS


@pytest.fixture
def server() -> Iterator[ThreadedMotoServer]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket, as pyarrow writes it."""
    host, port = server.get_host_and_port()
    # What an earlier server of this process had is still there.
    urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="kdsearch")
    return f"s3://kdsearch/team?endpoint_override={host}:{port}&scheme=http&region=us-east-1"


@pytest.fixture
def photographs(bucket: str, tmp_path: Path) -> dict[str, Any]:
    """The settings of images that lie in the bucket."""
    files = write_folders(tmp_path / "files", {"train": 16, "test": 4})
    for part in ("train", "test"):
        write_parquet(tmp_path / f"rows/{part}.parquet", rows_of(files / part))
    filesystem, path = fs.FileSystem.from_uri(bucket)
    fs.copy_files(str(tmp_path / "rows"), path, fs.LocalFileSystem(), filesystem)
    return {"name": "parquet", "root": bucket, "image_size": [32, 32], "heldout_fraction": 0.25}


def outlast_an_absence(
    server: ThreadedMotoServer,
    bucket: str,
    experiment: dict[str, Any],
    folder: Path,
    seconds: float,
) -> SearchRecord:
    """Runs a search to its end, whose bucket is away for a while."""
    (folder / "task.yaml").write_text(yaml.safe_dump(experiment))
    (folder / "start.py").write_text(START)
    search = Command(
        folder, "start.py", "launch", "task.yaml", "--storage", bucket, HOME=str(folder / "home")
    )
    storage = Storage(bucket)

    def trains() -> bool:
        if not storage.exists("searches/task-1/search.json"):
            return False
        return bool(read_record(storage, "task-1").trials)

    try:
        search.wait_until(trains)
        host, port = server.get_host_and_port()
        server.stop()
        time.sleep(seconds)
        again = ThreadedMotoServer(ip_address=host, port=port, verbose=False)  # with all it had
        again.start()
        try:
            done = search.wait()
            assert done.returncode == 0, done.stdout + done.stderr
            assert "teacher: epoch 2/2" in done.stdout
            assert "none (control)" in succeeded(
                folder, "leaderboard", "task-1", "--storage", bucket
            )
            record = read_record(storage, "task-1")
            # Another machine has neither tables nor teachers; it takes the teacher from the bucket.
            with pytest.MonkeyPatch.context() as elsewhere:
                elsewhere.setenv("HOME", str(folder / "elsewhere"))
                learned = train_teacher(record.experiment.model_dump_json(), bucket, threads=1)
                assert list(learned) == []
                assert list((folder / "elsewhere").rglob("teacher.json"))
        finally:
            again.stop()
    finally:
        search.send(signal.SIGKILL)
    return record


def test_a_search_with_images_and_storage_in_a_bucket_outlasts_its_absence(
    server: ThreadedMotoServer, bucket: str, photographs: dict[str, Any], tmp_path: Path
) -> None:
    experiment = EXPERIMENT | {"data": photographs}
    record = outlast_an_absence(server, bucket, experiment, tmp_path, SECONDS_AWAY)
    assert record.state == "finished"
    assert [trial.epochs_done for trial in record.trials] == [EPOCHS] * 2
    kdcore.load_student(tmp_path / "runs/searches/task-1/best")


def test_images_are_read_out_of_a_bucket(bucket: str, tmp_path: Path) -> None:
    files = write_folders(tmp_path / "files", {"train": 16, "test": 4})
    for part in ("train", "test"):
        write_parquet(tmp_path / f"rows/{part}-{{}}.parquet", rows_of(files / part), files=2)
    filesystem, path = fs.FileSystem.from_uri(bucket)
    fs.copy_files(str(tmp_path / "rows"), path, fs.LocalFileSystem(), filesystem)

    def opened(name: str, root: Path | str) -> ImageData:
        config = kdcore.DataConfig(name=name, root=root, image_size=(32, 32), heldout_fraction=0.25)
        return open_data(config, tmp_path)

    remote, local = opened("parquet", bucket), opened("image_folder", files)
    assert (remote.mean, remote.std) == (local.mean, local.std)
    order = remote.train.shuffled()
    for ours, theirs in zip(
        remote.train.views(order, 5, 16), local.train.views(order, 5, 16), strict=True
    ):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="cannot be read"):
        opened("parquet", bucket.replace("/kdsearch/", "/absent/"))
