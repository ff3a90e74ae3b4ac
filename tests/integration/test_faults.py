"""A search through faults that happen on one day: a trial's process killed with its newest
checkpoint truncated, a tracking server that is away, and a driver that is killed meanwhile."""

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.record.files import read_record
from search.record.storage import Storage
from search.record.trial_checkpoints import trial_folder
from tests.integration import checks
from tests.integration.commands import EAGER, Command
from tests.integration.mlflow_server import start_server, stop_server
from tests.integration.ray_cluster import free_port, processes_below

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd", "at"]],
    "training": {"epochs": 60, "learning_rate": 0.1, "schedule": "constant"},
    "search": {
        "trials": 2,
        "asha": {"grace_epochs": 20, "reduction": 2},
        "concurrent_trials": 1,
    },
}

START = EAGER + 'from search.cli.app import app\napp(["launch", "task.yaml", "--name", "faulty"])\n'


def workers(driver: int) -> list[int]:
    """The processes below a driver that run trials."""
    return processes_below(driver, "ray::ImplicitFunc")


def stop_trials(search: Command) -> None:
    """The trials' processes stand still from now on."""
    for pid in workers(search.pid):
        os.kill(pid, signal.SIGSTOP)


def kill_trials(search: Command) -> None:
    for pid in workers(search.pid):
        os.kill(pid, signal.SIGKILL)


def saved_epochs(checkpoints: Path) -> int:
    """How far the newest checkpoint of a trial is."""
    index = checkpoints / "checkpoints.json"
    return json.loads(index.read_text())["saved"][0]["epoch"] if index.exists() else 0


def are_whole(checkpoints: Path) -> bool:
    """Whether both checkpoints are there, as the index has them."""
    saved = json.loads((checkpoints / "checkpoints.json").read_text())["saved"]
    sums = [hashlib.sha256((checkpoints / each["file"]).read_bytes()).hexdigest() for each in saved]
    return len(sums) == 2 and sums == [each["sha256"] for each in saved]


def truncate_newest(checkpoints: Path) -> None:
    saved = json.loads((checkpoints / "checkpoints.json").read_text())["saved"]
    newest = checkpoints / saved[0]["file"]
    newest.write_bytes(newest.read_bytes()[:1000])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with a search that came through the faults; MLflow's server is up."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "start.py").write_text(START)
    port = free_port()
    server = start_server(folder, port)
    checkpoints = folder / "runs" / trial_folder("faulty", 0)
    search = Command(folder, "start.py", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    try:

        def stands_with_two() -> bool:
            if saved_epochs(checkpoints) < 2:
                return False
            stop_trials(search)
            if are_whole(checkpoints):
                return True
            for pid in workers(search.pid):  # it was just saving
                os.kill(pid, signal.SIGCONT)
            return False

        search.wait_until(stands_with_two)
        stop_server(server)
        truncate_newest(checkpoints)
        before = saved_epochs(checkpoints)
        kill_trials(search)
        search.wait_until(lambda: "trial 0 continues from its checkpoint" in search.stdout)
        log = folder / "runs/logs/faulty.log"
        search.wait_until(lambda: "the server is away; the next try is soon" in log.read_text())
        search.wait_until(lambda: saved_epochs(checkpoints) > before)
        search.send(signal.SIGKILL)
        search.wait()
        assert read_record(Storage(str(folder / "runs")), "faulty").state == "interrupted"
        server = start_server(folder, port)
        resumed = Command(folder, "resume", "faulty").wait()
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert "MLflow missed" not in resumed.stdout
        yield folder
    finally:
        search.send(signal.SIGKILL)
        stop_server(server)


def test_nothing_is_lost_and_nothing_there_twice(folder: Path) -> None:
    record = read_record(Storage(str(folder / "runs")), "faulty")
    checks.nothing_was_lost(record, folder / "runs")
