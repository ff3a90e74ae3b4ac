"""A search under Slurm: on two nodes, ended by its job's time limit, and continued by the next."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.record.files import read_record, search_names
from search.record.record import SearchRecord
from search.record.storage import Storage
from search.record.trial_checkpoints import trial_folder
from tests.endurance.slurm_cluster import NODES, SlurmCluster, slurm_or_skip
from tests.integration import checks
from tests.integration.commands import kdsearch, wait_until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 1, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 120, "learning_rate": 0.1},
    "search": {"trials": 2, "asha": None},
}


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    slurm_or_skip()
    cluster = SlurmCluster()
    yield cluster
    cluster.close()


class User:
    """Who submits the search `first`, on the login node.

    Attributes:
        storage: of the searches.
    """

    def __init__(self, slurm: SlurmCluster, folder: Path) -> None:
        self._folder = folder
        (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        self.storage = Storage(str(folder / "runs"))
        self._variables = slurm.environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def kdsearch(self, *arguments: str) -> str:
        done = kdsearch(self._folder, *arguments, **self._variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> str:
        """What `kdsearch status` shows, also where somebody's Ray on this machine refuses it."""
        return kdsearch(self._folder, "status", **self._variables).stdout

    def submit(self) -> str:
        """Submits it; returns Slurm's number of the job."""
        said = self.kdsearch(
            *("submit", "task.yaml", "--slurm", "--name", "first", "--nodes", "2"),
            *("--partition", "main", "--time", "30", "--gpus", "a100:1", "--requeue"),
        )
        return said.split("Slurm's job ")[1].split(";")[0]

    def output(self, job: str) -> str:
        """What a job has printed."""
        file = self._folder / "runs" / "logs" / f"first.slurm-{job}.out"
        return file.read_text() if file.exists() else ""

    def has_begun(self, trial: int) -> bool:
        """Whether a trial has an epoch behind it."""
        return Path(self.storage.uri, trial_folder("first", trial), "checkpoints.json").exists()


@pytest.fixture(scope="module")
def user(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(slurm, tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def cut(slurm: SlurmCluster, user: User) -> SearchRecord:
    """The search after its job's time limit; the job waits to go on."""
    job = user.submit()
    wait_until(lambda: user.has_begun(0) and user.has_begun(1))
    # Its trials stand still until Slurm has sent its signal: they would be at their end before.
    slurm.signal_trials(signal.SIGSTOP)
    status = user.status()
    assert re.search(rf"first +Slurm job {job} +running, .* 2 running", status), status
    for node in NODES:
        assert re.search(rf"{node} +Slurm +1 of 1 CPUs", status), status
    assert Path(f"/tmp/kdsearch-{job}.head").stat().st_mode & 0o77 == 0, "others could enter"
    slurm.end_soon(job)
    wait_until(lambda: "stopping; Ctrl-C again ends at once" in user.output(job))
    slurm.signal_trials(signal.SIGCONT)
    wait_until(lambda: slurm.state(job) == "PENDING")
    assert "2 of 2 nodes are there, with 2 CPUs and 2 GPUs" in user.output(job)
    slurm.cancel(job)
    return read_record(user.storage, "first")


def test_the_time_limit_ends_a_search_as_ctrl_c_does(user: User, cut: SearchRecord) -> None:
    assert cut.state == "interrupted"
    # At the same time, on two nodes of one core each.
    assert [trial.state for trial in cut.trials] == ["interrupted", "interrupted"]
    assert all(0 < trial.epochs_done < trial.epochs for trial in cut.trials)


def test_the_next_job_continues_it_to_its_end_and_nothing_is_lost(
    slurm: SlurmCluster, user: User, cut: SearchRecord
) -> None:
    job = user.submit()
    wait_until(lambda: slurm.state(job) not in {"PENDING", "RUNNING", "COMPLETING"})
    said = user.output(job)
    assert "search first has begun; it continues with its own experiment" in said
    assert "2 of 2 nodes are there" in said
    assert search_names(user.storage) == ["first"]
    record = read_record(user.storage, "first")
    for before, after in zip(cut.trials, record.trials, strict=True):
        assert after.accuracies[: before.epochs_done] == before.accuracies
    checks.nothing_was_lost(record, Path(user.storage.uri))
