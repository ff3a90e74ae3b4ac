"""A search that a cluster runs by itself: submitted, followed, stopped and resumed from another
machine, while the cluster's own machines come and go."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.record.files import read_record, search_names
from search.record.record import SearchRecord
from search.record.storage import Storage
from search.record.trial_checkpoints import trial_folder
from tests.integration import checks
from tests.integration.commands import wait_until
from tests.integration.ray_cluster import RayCluster

pytestmark = pytest.mark.integration

# Long enough that a search is still far from its end when it is stopped.
EPOCHS = 40
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 1, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": EPOCHS, "learning_rate": 0.1},
    "search": {"trials": 2, "asha": None, "concurrent_trials": 2},
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
    folder = cluster.folder / "shared"
    folder.mkdir()
    return Storage(str(folder))


@pytest.fixture(scope="module")
def stopped(cluster: RayCluster, storage: Storage) -> SearchRecord:
    """A submitted search that waited for a machine, lost it while a trial ran there, went on with
    another one, and was stopped after that."""
    submitted = cluster.kdsearch("submit", "task.yaml", "--storage", storage.uri, "--name", "cut")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "kdsearch stop cut" in submitted.stdout
    wait_until(lambda: "cut" in search_names(storage))
    machine = cluster.add_machine()
    wait_until(lambda: has_begun(storage, 0))
    cluster.lose(machine)
    wait_until(lambda: lost_trials(cluster) != [])
    machine = cluster.add_machine(cpus=2)
    wait_until(lambda: has_begun(storage, 1))
    # Its trials stand still until the search knows that it is to stop: on a fast machine they would
    # be at their end before.
    cluster.signal_trials(machine, signal.SIGSTOP)
    stop = cluster.started("stop", "cut")
    wait_until(
        lambda: "stopping; Ctrl-C again ends at once" in cluster.kdsearch("logs", "cut").stdout
    )
    cluster.signal_trials(machine, signal.SIGCONT)
    done = stop.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "search cut is stopped" in done.stdout
    return read_record(storage, "cut")


def has_begun(storage: Storage, trial: int) -> bool:
    """Whether a trial has an epoch behind it."""
    return Path(storage.uri, trial_folder("cut", trial), "checkpoints.json").exists()


def lost_trials(cluster: RayCluster) -> list[int]:
    """The trials whose machine was lost, as the search's own words tell."""
    said = cluster.kdsearch("logs", "cut").stdout
    found = re.findall(r"trial (\d+) continues from its checkpoint", said)
    return [int(number) for number in found]


def test_a_name_is_given_once(cluster: RayCluster, storage: Storage, stopped: SearchRecord) -> None:
    again = cluster.kdsearch("submit", "task.yaml", "--storage", storage.uri, "--name", "cut")
    assert again.returncode == 2
    assert again.stderr == "--name: 'cut' is taken; choose another, or leave --name out\n"


def test_stop_ends_a_search_as_ctrl_c_does(cluster: RayCluster, stopped: SearchRecord) -> None:
    assert stopped.state == "interrupted"
    assert "interrupted" in {trial.state for trial in stopped.trials}
    assert {trial.state for trial in stopped.trials} <= {"interrupted", "finished"}
    client = MlflowClient(stopped.tracking_uri)
    assert stopped.mlflow_experiment_id is not None
    runs = client.search_runs([stopped.mlflow_experiment_id])
    assert {run.info.status for run in runs} == {"KILLED", "FINISHED"}
    logs = cluster.kdsearch("logs", "cut").stdout
    assert "stopping; Ctrl-C again ends at once" in logs
    assert "The search ended early" in logs
    assert "cut: stopped" in cluster.kdsearch("status", "cut").stdout


@pytest.fixture(scope="module")
def resumed(cluster: RayCluster, storage: Storage, stopped: SearchRecord) -> SearchRecord:
    """The same search at its end."""
    resumed = cluster.kdsearch("resume", "cut", "--address", cluster.job_server)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    followed = cluster.kdsearch("logs", "cut", "--follow")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    for words in ("trial 1 finished after", "cut (finished)", "none (control)"):
        assert words in followed.stdout
    return read_record(storage, "cut")


def test_a_stopped_search_goes_on_to_its_end(cluster: RayCluster, resumed: SearchRecord) -> None:
    status = cluster.kdsearch("status", "cut").stdout
    assert "cut: succeeded" in status
    assert f"where    job cut.2 at {cluster.job_server}, since" in status
    assert "2 finished of 2" in status
    assert "none (control)" in status


def test_every_trial_ends_once_as_if_nothing_had_happened(
    resumed: SearchRecord, storage: Storage
) -> None:
    checks.every_trial_is_there_once_and_ended(resumed)
    checks.reports_are_those_of_undisturbed_trials(resumed, Path(storage.uri))
    checks.mlflow_has_every_epoch_once_and_in_order(resumed)


def test_a_dry_run_asks_the_cluster_and_makes_nothing(
    cluster: RayCluster, storage: Storage, resumed: SearchRecord
) -> None:
    dry = ("launch", "task.yaml", "--dry-run", "--address", cluster.address)
    dry += ("--storage", storage.uri)
    told = cluster.kdsearch(*dry, "--set", "prices.cpu_hour=1")
    assert told.returncode == 0, told.stdout + told.stderr
    assert re.search(r"^at once  2 trials, each for about", told.stdout, re.MULTILINE)
    spent = r"^at most  about (\S+) h, (\S+) CPU-hours, (\S+) USD for the trials"
    (amounts,) = re.findall(spent, told.stdout, re.MULTILINE)
    assert float(amounts[2]) == pytest.approx(float(amounts[1]), rel=0.05), "an hour for 1"
    refused = cluster.kdsearch(*dry, "--set", "prices={machine_hour: {worker: 1}}")
    assert refused.returncode == 2
    assert "prices.machine_hour has no price for machines of type ''" in refused.stderr
    assert search_names(storage) == [resumed.name]


def test_a_job_that_fails_says_so(cluster: RayCluster, storage: Storage) -> None:
    failed = cluster.kdsearch(
        *("submit", "task.yaml", "--storage", storage.uri, "--follow"),
        *("--set", "data={name: fashion_mnist, root: /absent}"),
    )
    assert failed.returncode == 1
    assert "search task-1 is submitted" in failed.stdout
    assert "root is '/absent', but that is not a folder" in failed.stdout
    listed = cluster.kdsearch("status").stdout.splitlines()
    assert any("task-1" in line and "failed" in line for line in listed)
    # The head has no cores for trials, and the other machine two.
    assert any(re.search(rf"{cluster.job_server} +\d of 2 CPUs", line) for line in listed), listed


def test_only_the_token_opens_the_job_server(cluster: RayCluster) -> None:
    without = cluster.kdsearch("status", HOME=str(cluster.folder))
    assert without.returncode == 2
    assert "asks for a token; put the cluster's into ~/.ray/auth_token" in without.stderr
    wrong = cluster.kdsearch("status", RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode == 2
    assert "refuses this token" in wrong.stderr
