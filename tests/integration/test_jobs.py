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

TASK: dict[str, Any] = EXPERIMENT | {"narrow": {}, "search": {"trials": 2, "asha": None}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    cluster = RayCluster(folder)
    try:
        cluster.add_machine(cpus=2)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def storage(cluster: RayCluster) -> str:
    """The folder that all machines reach."""
    return str(cluster.folder / "shared")


@pytest.fixture(scope="module")
def stopped(cluster: RayCluster, storage: str) -> Storage:
    """Where a search lies that was submitted, and stopped in its first trials."""
    submitted = cluster.kdsearch(
        *("submit", "task.yaml", "--storage", storage, "--name", "cut"),
        *("--set", "training.epochs=1000"),
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "kdsearch stop cut" in submitted.stdout
    place = Storage(storage)
    record = f"{storage}/searches/cut/search.json"

    def trains() -> bool:
        return Path(record).exists() and any(
            t.epochs_done for t in read_record(place, "cut").trials
        )

    wait_until(trains, 120)
    again = cluster.kdsearch("submit", "task.yaml", "--storage", storage, "--name", "cut")
    assert again.returncode == 2
    assert again.stderr == "--name: 'cut' is taken; choose another, or leave --name out\n"
    running = cluster.kdsearch("status", "cut").stdout
    assert "cut: running" in running
    assert "2 running" in running
    done = cluster.kdsearch("stop", "cut")
    assert done.returncode == 0, done.stderr
    assert "search cut is stopped" in done.stdout
    return place


def test_stop_ends_a_search_as_ctrl_c_does(cluster: RayCluster, stopped: Storage) -> None:
    record = read_record(stopped, "cut")
    assert record.state == "interrupted"
    assert {trial.state for trial in record.trials} == {"interrupted"}
    client = MlflowClient(record.tracking_uri)
    assert record.mlflow_experiment_id is not None
    runs = client.search_runs([record.mlflow_experiment_id])
    assert {run.info.status for run in runs} <= {"KILLED", "FINISHED"}
    logs = cluster.kdsearch("logs", "cut").stdout
    assert "stopping; Ctrl-C again ends at once" in logs
    assert "The search ended early" in logs
    assert "cut: stopped" in cluster.kdsearch("status", "cut").stdout
    again = cluster.kdsearch("stop", "cut")
    assert again.returncode == 2
    assert again.stderr == "kdsearch: search 'cut' is not running: it has stopped\n"


def test_a_search_is_followed_to_its_end(cluster: RayCluster, stopped: Storage) -> None:
    followed = cluster.kdsearch("submit", "task.yaml", "--storage", stopped.uri, "--follow")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert followed.stderr == ""
    for words in ("search task-1 is on its way", "trial 0 finished", "task-1 (finished)"):
        assert words in followed.stdout
    status = cluster.kdsearch("status", "task-1").stdout
    assert "task-1: succeeded" in status
    assert "2 finished of 2" in status
    assert "none (control)" in status
    assert "none (control)" in cluster.kdsearch("logs", "task-1", "--follow").stdout
    board = cluster.kdsearch("leaderboard", "task-1", "--storage", stopped.uri)
    assert "none (control)" in board.stdout
    both = cluster.kdsearch("status").stdout
    assert "cut" in both
    assert "task-1" in both


def test_a_job_that_fails_says_so(cluster: RayCluster, stopped: Storage) -> None:
    arguments = ("--set", "data={name: fashion_mnist, root: /absent}", "--name", "wrong")
    failed = cluster.kdsearch(
        "submit", "task.yaml", "--storage", stopped.uri, "--follow", *arguments
    )
    assert failed.returncode == 1
    assert "root is '/absent', but that is no folder" in failed.stdout
    status = cluster.kdsearch("status", "wrong").stdout
    assert "wrong: failed" in status
    assert "kdsearch logs wrong" in status


def test_mistakes_are_refused_before_anything_is_sent(cluster: RayCluster, storage: str) -> None:
    def refused(*arguments: str, **variables: str) -> list[str]:
        done = cluster.kdsearch("submit", "task.yaml", *arguments, **variables)
        assert done.returncode == 2
        assert done.stdout == ""
        return done.stderr.splitlines()

    both = refused("--storage", storage, "--set", "search.trials=0", "--set", "student=x")
    assert [line.split(": ")[1] for line in both] == ["student", "search.trials"]
    assert "--storage is missing" in refused()[0]
    assert "'runs', but must be a URI" in refused("--storage", "runs")[0]
    assert "'../x' is no name" in refused("--storage", storage, "--name", "../x")[0]
    (line,) = refused("--storage", storage, "--address", "http://127.0.0.1:1")
    assert "no answer from a job server at http://127.0.0.1:1: [Errno 111]" in line
    assert (
        "must be that of a job server"
        in refused("--storage", storage, "--address", cluster.address)[0]
    )
    (line,) = refused("--storage", storage, HOME=str(cluster.folder))
    assert "asks for a token; put the cluster's into ~/.ray/auth_token" in line
    (line,) = refused("--storage", storage, RAY_AUTH_TOKEN="0" * 64)
    assert "refuses this token" in line
    unknown = cluster.kdsearch("status", "cutt")
    assert unknown.returncode == 2
    assert "no search 'cutt'" in unknown.stderr
