"""A search whose storage is a bucket, and images that lie in one: an S3 server on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import boto3
import pytest
import torch
import yaml
from moto.server import ThreadedMotoServer
from pyarrow import fs

import kdcore
from kdcore.data import ImageData, open_data
from search.record import read_record
from search.storage import Storage
from tests.integration.ray_cluster import wait_until
from tests.integration.test_search import EXPERIMENT
from tests.unit.kdcore.photographs import rows_of, write_folders, write_parquet

pytestmark = pytest.mark.integration


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


def test_a_search_keeps_everything_in_its_bucket(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT | {"narrow": {}}))
    environment = os.environ | {"HOME": str(tmp_path / "home")}

    def kdsearch(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "search", *arguments, "--storage", bucket],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = kdsearch("launch", "task.yaml", "--set", "search.trials=4")
    assert "teacher: epoch 3/3" in first
    kdcore.load_student(tmp_path / "runs/searches/task-1/best")
    # Another machine has neither tables nor teachers; it takes the teacher from the bucket.
    environment["HOME"] = str(tmp_path / "elsewhere")
    second = kdsearch("launch", "task.yaml", "--set", "search.trials=1")
    assert "search task-2" in second
    assert "teacher: epoch" not in second
    assert "none (control)" in kdsearch("leaderboard", "task-1")


def test_a_search_outlasts_a_bucket_that_is_away(
    server: ThreadedMotoServer, bucket: str, tmp_path: Path
) -> None:
    experiment = EXPERIMENT | {"narrow": {}, "search": {"trials": 2, "asha": None}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(experiment))
    command = [sys.executable, "-m", "search", "launch", "task.yaml", "--storage", bucket]
    command += ["--set", "training.epochs=60", "--set", "cache=null"]
    search = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    storage = Storage(bucket)

    def trains() -> bool:
        assert search.poll() is None, search.communicate()
        if not storage.exists("searches/task-1/search.json"):
            return False
        return bool(read_record(storage, "task-1").trials)

    wait_until(trains, 180)
    host, port = server.get_host_and_port()
    server.stop()
    time.sleep(60)
    again = ThreadedMotoServer(ip_address=host, port=port, verbose=False)  # with all it had
    again.start()
    try:
        output, _ = search.communicate(timeout=300)
        assert search.returncode == 0, output
        record = read_record(storage, "task-1")
    finally:
        again.stop()
    assert record.state == "finished"
    assert [trial.epochs_done for trial in record.trials] == [60, 60]


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


def test_a_search_takes_its_images_from_a_bucket(bucket: str, tmp_path: Path) -> None:
    files = write_folders(tmp_path / "files", {"train": 16, "test": 4})
    for part in ("train", "test"):
        write_parquet(tmp_path / f"rows/{part}.parquet", rows_of(files / part))
    filesystem, path = fs.FileSystem.from_uri(bucket)
    fs.copy_files(str(tmp_path / "rows"), path, fs.LocalFileSystem(), filesystem)
    data = {"name": "parquet", "root": bucket, "image_size": [32, 32], "heldout_fraction": 0.25}
    search = EXPERIMENT["search"] | {"trials": 2}
    (tmp_path / "task.yaml").write_text(
        yaml.safe_dump(EXPERIMENT | {"narrow": {}, "data": data, "search": search})
    )
    done = subprocess.run(
        [sys.executable, "-m", "search", "launch", "task.yaml", "--set", "resources.cpus=2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kdcore.load_student(tmp_path / "runs/searches/task-1/best")
