"""A search through faults that happen on one day: a worker killed with its newest checkpoint
truncated, and a tracking server that is away meanwhile."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

import kdcore
from search.checkpoints import trial_folder
from search.record import SearchRecord, read_record
from search.space import trial_config
from search.storage import Storage
from search.trial import _CHECKPOINT_SECONDS
from tests.integration.ray_cluster import free_port, wait_until

pytestmark = pytest.mark.integration

EPOCHS = 60
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": EPOCHS, "learning_rate": 0.1},
    "search": {"trials": 3, "asha": None, "concurrent_trials": 2},
}


def server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """An MLflow server that answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return process
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("MLflow's server did not start")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Kills a server of ours with the processes that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def workers(driver: int) -> list[int]:
    """The processes below a driver that run trials."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                words = (folder / "cmdline").read_text()
            except OSError:
                continue
            parents[int(folder.name)] = (int(stat.rpartition(")")[2].split()[1]), words)

    def below(pid: int) -> bool:
        while pid in parents:
            if pid == driver:
                return True
            pid = parents[pid][0]
        return False

    return [
        pid
        for pid, (_, words) in parents.items()
        if words.startswith("ray::ImplicitFunc") and below(pid)
    ]


@contextmanager
def held(search: "subprocess.Popen[str]") -> Iterator[None]:
    """The trials stand still meanwhile."""
    pids = workers(search.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def wait_for_two(checkpoints: Path, search: "subprocess.Popen[str]") -> None:
    """Waits until a trial has two checkpoints. It makes one every few seconds, in which a fast
    machine would come to the trial's end: so its process is held for that long, again and again."""
    deadline = time.monotonic() + 300
    while len(list(checkpoints.glob("*.pt"))) < 2:
        assert search.poll() is None
        assert time.monotonic() < deadline
        if list(checkpoints.parents[1].glob("search.json")):
            with held(search):
                time.sleep(_CHECKPOINT_SECONDS)
        time.sleep(0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with a search that came through the faults; MLflow's server is up."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    port = free_port()
    mlflow = server(folder, port)
    command = [sys.executable, "-m", "search", "launch", "task.yaml", "--name", "faulty"]
    command += ["--tracking-uri", f"http://127.0.0.1:{port}"]
    search = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        checkpoints = folder / "runs" / trial_folder("faulty", 0)
        wait_for_two(checkpoints, search)
        stop(mlflow)
        newest = max(checkpoints.glob("*.pt"), key=lambda path: path.stat().st_mtime)
        newest.write_bytes(newest.read_bytes()[:1000])
        for pid in workers(search.pid):
            os.kill(pid, signal.SIGKILL)
        log = folder / "runs/logs/faulty.log"
        wait_until(lambda: "away, and tried again" in log.read_text(), 120)
        wait_until(lambda: len(workers(search.pid)) == 2, 120)
        with held(search):
            mlflow = server(folder, port)
        output, _ = search.communicate(timeout=300)
        assert search.returncode == 0, output
        assert "MLflow missed" not in output
        yield folder
    finally:
        stop(mlflow)
        if search.poll() is None:
            search.kill()
            search.communicate()


@pytest.fixture(scope="module")
def record(folder: Path) -> SearchRecord:
    return read_record(Storage(str(folder / "runs")), "faulty")


def test_every_trial_finishes_with_the_reports_of_an_undisturbed_one(
    folder: Path, record: SearchRecord
) -> None:
    assert [trial.state for trial in record.trials] == ["finished"] * 3
    for trial in record.trials[:2]:
        config = trial_config(record.experiment, trial.point)
        reports = kdcore.distill(config, workspace=folder / "runs")
        assert trial.accuracies == tuple(report.heldout_accuracy for report in reports)


def test_mlflow_caught_up_in_order_and_without_duplicates(record: SearchRecord) -> None:
    assert record.mlflow_experiment_id is not None
    client = MlflowClient(record.tracking_uri)
    runs = client.search_runs([record.mlflow_experiment_id], "tags.`kdsearch.role` = 'trial'")
    assert len(runs) == 3
    for run in runs:
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "heldout_accuracy")
        logged = sorted(history, key=lambda entry: entry.step)
        trial = record.trials[int(run.data.tags["kdsearch.trial"])]
        assert [entry.step for entry in logged] == list(range(1, EPOCHS + 1))
        assert [entry.value for entry in logged] == list(trial.accuracies)
        times = [entry.timestamp for entry in logged]
        assert times == sorted(times)
