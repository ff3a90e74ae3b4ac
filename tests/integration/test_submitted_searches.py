"""A search that a cluster runs by itself: submitted, followed and stopped from another machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.record import read_record
from search.storage import Storage
from tests.integration.ray_cluster import RayCluster, wait_until
from tests.integration.test_search import EXPERIMENT

pytestmark = pytest.mark.integration

# Long enough that a search is still far from its end when it is stopped.
EPOCHS = 300
TASK: dict[str, Any] = EXPERIMENT | {"narrow": {}, "search": {"trials": 2, "asha": None}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    cluster = RayCluster(folder, head_cpus=2)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def storage(cluster: RayCluster) -> Storage:
    """The folder that all machines reach."""
    return Storage(str(cluster.folder / "shared"))


@pytest.fixture(scope="module")
def stopped(cluster: RayCluster, storage: Storage) -> str:
    """The name of a search that was submitted, and stopped in its first trials."""
    submitted = cluster.kdsearch(
        *("submit", "task.yaml", "--storage", storage.uri, "--name", "cut"),
        *("--set", f"training.epochs={EPOCHS}"),
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "kdsearch stop cut" in submitted.stdout
    wait_until(lambda: trains(storage, "cut"), 120)
    done = cluster.kdsearch("stop", "cut")
    assert done.returncode == 0, done.stderr
    assert "search cut is stopped" in done.stdout
    return "cut"


def test_a_name_is_given_once(cluster: RayCluster, storage: Storage, stopped: str) -> None:
    again = cluster.kdsearch("submit", "task.yaml", "--storage", storage.uri, "--name", stopped)
    assert again.returncode == 2
    assert again.stderr == "--name: 'cut' is taken; choose another, or leave --name out\n"


def trains(storage: Storage, name: str) -> bool:
    """Whether a trial has reported an epoch."""
    if not Path(f"{storage.uri}/searches/{name}/search.json").exists():
        return False
    return any(trial.epochs_done for trial in read_record(storage, name).trials)


def test_stop_ends_a_search_as_ctrl_c_does(
    cluster: RayCluster, storage: Storage, stopped: str
) -> None:
    record = read_record(storage, stopped)
    assert record.state == "interrupted"
    assert {trial.state for trial in record.trials} == {"interrupted"}
    client = MlflowClient(record.tracking_uri)
    assert record.mlflow_experiment_id is not None
    runs = client.search_runs([record.mlflow_experiment_id])
    assert {run.info.status for run in runs} == {"KILLED", "FINISHED"}
    logs = cluster.kdsearch("logs", stopped).stdout
    assert "stopping; Ctrl-C again ends at once" in logs
    assert "The search ended early" in logs
    assert "cut: stopped" in cluster.kdsearch("status", stopped).stdout


def test_a_stopped_search_goes_on_to_its_end(
    cluster: RayCluster, storage: Storage, stopped: str
) -> None:
    resumed = cluster.kdsearch("resume", stopped, "--address", cluster.job_server)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    followed = cluster.kdsearch("logs", stopped, "--follow")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    for words in (
        f"trial 0 finished after {EPOCHS} of {EPOCHS} epochs",
        "cut (finished)",
        "none (control)",
    ):
        assert words in followed.stdout
    status = cluster.kdsearch("status", stopped).stdout
    assert "cut: succeeded" in status
    assert "job      cut.2" in status
    assert "2 finished of 2" in status
    assert {trial.state for trial in read_record(storage, stopped).trials} == {"finished"}
    board = cluster.kdsearch("leaderboard", stopped, "--storage", storage.uri)
    assert "none (control)" in board.stdout


def test_a_job_that_fails_says_so(cluster: RayCluster, storage: Storage) -> None:
    failed = cluster.kdsearch(
        *("submit", "task.yaml", "--storage", storage.uri, "--follow"),
        *("--set", "data={name: fashion_mnist, root: /absent}"),
    )
    assert failed.returncode == 1
    assert "search task-1 is on its way" in failed.stdout
    assert "root is '/absent', but that is no folder" in failed.stdout
    listed = cluster.kdsearch("status").stdout.splitlines()
    assert any("task-1" in line and "failed" in line for line in listed)


def test_only_the_token_opens_the_job_server(cluster: RayCluster) -> None:
    without = cluster.kdsearch("status", HOME=str(cluster.folder))
    assert without.returncode == 2
    assert "asks for a token; put the cluster's into ~/.ray/auth_token" in without.stderr
    wrong = cluster.kdsearch("status", RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode == 2
    assert "refuses this token" in wrong.stderr
