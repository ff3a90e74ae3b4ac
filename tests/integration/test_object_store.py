"""A search whose storage is a bucket: an S3 server on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

import kdcore
from tests.integration.test_search import EXPERIMENT

pytestmark = pytest.mark.integration


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket, as pyarrow writes it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="kdsearch")
    yield f"s3://kdsearch/team?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


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
