"""Machines of a cluster come and go during a search, and nothing is lost."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.record import SearchRecord, read_record
from search.storage import Storage
from tests.integration.ray_cluster import RayCluster, wait_until

pytestmark = pytest.mark.integration

EPOCHS = 60

# The control and the published settings alone: the same trials, in whatever order they end.
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 3, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd", "dkd", "at", "rkd", "sp"]],
    "training": {"epochs": EPOCHS, "learning_rate": 0.1},
    "search": {"trials": 6, "asha": None, "concurrent_trials": 3},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head that runs no trials."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    cluster = RayCluster(folder)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def storage(cluster: RayCluster) -> Storage:
    """The folder that all machines reach."""
    return Storage(str(cluster.folder / "shared"))


def launch(cluster: RayCluster, storage: Storage, name: str) -> list[str]:
    """The command of a search on the cluster."""
    command = ["launch", "task.yaml", "--name", name]
    return [*command, "--address", cluster.address, "--storage", storage.uri]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can hide a folder")
def test_a_machine_that_does_not_see_the_storage_is_found_before_anything_is_trained(
    cluster: RayCluster, storage: Storage
) -> None:
    Path(storage.uri).mkdir(exist_ok=True)
    stranger = cluster.add_machine(without=Path(storage.uri))
    refused = cluster.kdsearch(*launch(cluster, storage, "refused"))
    checked = cluster.kdsearch(
        "check", "task.yaml", "--address", cluster.address, "--storage", storage.uri
    )
    cluster.lose(stranger)
    for done in (refused, checked):
        assert done.returncode != 0
        assert f"{storage.uri} is not shared by all machines" in done.stdout + done.stderr
    assert not (Path(storage.uri) / "searches/refused").exists()
    assert not (Path(storage.uri) / "teachers").exists()


@pytest.fixture(scope="module")
def disturbed(cluster: RayCluster, storage: Storage) -> SearchRecord:
    """A search that waited for its machines, lost one while all were busy, and got another."""
    process = cluster.start(*launch(cluster, storage, "disturbed"))
    record = Path(storage.uri) / "searches/disturbed/search.json"
    wait_until(record.exists, 180)
    for _ in range(3):
        cluster.add_machine()

    def all_are_busy() -> bool:
        assert process.poll() is None, process.communicate()
        busy = [t for t in read_record(storage, "disturbed").trials if t.state == "running"]
        return len(busy) == 3

    wait_until(all_are_busy, 180)
    cluster.lose(cluster.machines[-1])
    cluster.add_machine()
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    return read_record(storage, "disturbed")


def test_every_trial_ends_and_none_twice(disturbed: SearchRecord) -> None:
    assert disturbed.state == "finished"
    assert [trial.number for trial in disturbed.trials] == list(range(6))
    assert {trial.state for trial in disturbed.trials} == {"finished"}
    assert {trial.epochs_done for trial in disturbed.trials} == {EPOCHS}
    client = MlflowClient(disturbed.tracking_uri)
    assert disturbed.mlflow_experiment_id is not None
    runs = client.search_runs([disturbed.mlflow_experiment_id], "tags.`kdsearch.role` = 'trial'")
    numbers = [int(run.data.tags["kdsearch.trial"]) for run in runs]
    assert sorted(numbers) == list(range(6))
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "heldout_accuracy")
        assert [entry.step for entry in history] == list(range(1, EPOCHS + 1))


def test_the_lost_machine_was_training(disturbed: SearchRecord, storage: Storage) -> None:
    log = (Path(storage.uri) / "logs/disturbed.log").read_text()
    assert "Trial task failed" in log


def test_the_leaderboard_is_that_of_an_undisturbed_search(
    cluster: RayCluster, storage: Storage, disturbed: SearchRecord
) -> None:
    done = cluster.kdsearch(*launch(cluster, storage, "calm"))
    assert done.returncode == 0, done.stdout + done.stderr
    calm = read_record(storage, "calm")

    def scores(record: SearchRecord) -> list[tuple[object, ...]]:
        return [(t.point, t.heldout_accuracy, t.heldout_loss, t.best_epoch) for t in record.trials]

    assert scores(calm) == scores(disturbed)
