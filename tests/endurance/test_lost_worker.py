"""Teacher and trials by two processes on two machines, with GPUs that these pretend to have: one is
killed, and the trial goes on."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import kdcore
from search.experiment.space.trial_config import trial_config
from search.record.files import read_record
from search.record.record import SearchRecord
from search.record.storage import Storage
from search.record.trial_checkpoints import recorded_reports, trial_folder
from tests.integration import checks
from tests.integration.commands import EAGER
from tests.integration.ray_cluster import RayCluster, processes_below

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 256},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 1, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "rkd"]],
    "training": {"epochs": 8, "acceleration": "off", "sync_batch_norms": True},
    "search": {"trials": 2, "stopping": "none"},
    "resources": {"workers": 2, "gpus": 1},
    "confirm": {"top": 1, "seeds": 2},
}

ANOTHER = "ray::_work_along"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Two machines with a core and a GPU each; the head has none."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    cluster = RayCluster(folder)
    start = f'{EAGER}from search.cli.app import app\napp(["launch", "task.yaml", "--name", "two", '
    (folder / "start.py").write_text(f'{start}"--address", "{cluster.address}"])\n')
    try:
        for _ in range(2):
            cluster.add_machine(gpus=1)
        yield cluster
    finally:
        cluster.close()


def workers(cluster: RayCluster) -> list[int]:
    """The processes that help a trial, wherever they are."""
    return [pid for each in cluster.machines for pid in processes_below(each.pid, ANOTHER)]


@pytest.fixture(scope="module")
def record(cluster: RayCluster) -> SearchRecord:
    """A search whose first trial lost its second process after an epoch."""
    first = cluster.folder / "runs" / trial_folder("two", 0) / "checkpoints.json"
    search = cluster.started("start.py")
    search.wait_until(lambda: first.exists() and bool(workers(cluster)))
    for pid in workers(cluster):
        os.kill(pid, signal.SIGKILL)
    done = search.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    lost = "trial 0 continues from its checkpoint, after: another worker failed"
    assert lost in done.stdout
    return read_record(Storage(str(cluster.folder / "runs")), "two")


def test_a_trial_that_lost_a_process_goes_on_to_its_end(
    cluster: RayCluster, record: SearchRecord
) -> None:
    checks.every_trial_is_there_once_and_ended(record)
    checks.mlflow_has_every_epoch_once_and_in_order(record)
    assert workers(cluster) == []


def test_it_is_trained_as_by_one_process(cluster: RayCluster, record: SearchRecord) -> None:
    """Batch norms are synchronised; in float32, trainings part after some steps."""
    storage = Storage(str(cluster.folder / "runs"))
    for trial in record.trials:
        assert trial.checkpoint is not None
        first, *_ = recorded_reports(storage, trial.checkpoint)
        config = trial_config(record.experiment, trial.point)
        alone = next(kdcore.distill(config, workspace=storage.uri))
        assert first["train_loss"] == pytest.approx(alone.train_loss, rel=1e-3)
        assert first["heldout_loss"] == pytest.approx(alone.heldout_loss, rel=1e-2)


def test_each_device_of_its_processes_counts(record: SearchRecord) -> None:
    assert record.experiment.resources.written == {"cpus": 1, "gpus": 1.0, "workers": 2}
    seconds = sum(trial.train_seconds for trial in record.trials)
    assert record.device_seconds > 2 * seconds


def test_students_are_confirmed_by_as_many_processes(record: SearchRecord) -> None:
    runs = [run for row in record.confirmed for run in row.runs]
    assert len(runs) == 2 * len(record.confirmed) >= 4
    assert all(not run.reason and run.test_accuracy is not None for run in runs)


def test_a_row_is_trained_again_by_as_many_processes(
    cluster: RayCluster, record: SearchRecord
) -> None:
    """Also the one that was cut off, to the bit."""
    for trial in record.trials:
        again = cluster.kdsearch("rerun", "two", str(trial.number))
        assert again.returncode == 0, again.stdout + again.stderr
        assert "equal: all 8 epochs give the recorded numbers" in again.stdout


def test_more_processes_than_there_are_places_are_refused(cluster: RayCluster) -> None:
    crowd = "resources.workers=3"
    refused = cluster.kdsearch("check", "task.yaml", "--set", crowd, "--address", cluster.address)
    assert refused.returncode == 2
    assert "a trial needs 3 times 1 CPUs and 1 GPUs on one machine, but there is" in refused.stderr
