"""Trials that raise, once or for ever, or find too little memory on their GPU: they are tried again
a few times, and the search goes on, and tells of itself, until Ctrl-C ends it in true states."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.record.files import read_record
from search.record.record import SearchRecord
from search.record.storage import Storage, default_tracking_uri
from tests.integration.commands import Command, succeeded

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 1, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 3, "learning_rate": 0.1},
    "search": {"trials": 5, "asha": None},
}

# A user's bug, and a GPU too small for whole batches, in trials alone: what runs before them does
# not meet it. The last trial never ends: it tells of its first epoch again and again.
LAUNCH = """
import time
from pathlib import Path
from unittest.mock import patch

import torch
from ray import tune

from kdcore.training.run import Run
from search.report import reporter
from search.session import session
from search.cli.app import app
from search.session.trial import run_trial

add_gradients = Run._add_gradients
tell = tune.report


def hungry(self, images, batch, *rest):
    if batch.epoch > 1 and len(images) > 32:
        raise torch.OutOfMemoryError("CUDA out of memory")
    add_gradients(self, images, batch, *rest)


def tell_for_ever(result):
    while True:
        tell(result)
        time.sleep(0.3)


def faulty(point, **settings):
    tries = Path(f"tries-{point['trial']}").absolute()
    with tries.open("a") as file:
        file.write("x")
    if point["trial"] == 1:
        raise RuntimeError("no such luck")
    if point["trial"] == 2 and len(tries.read_text()) == 1:
        raise RuntimeError("once")
    if point["trial"] == 3:
        with patch.object(Run, "_add_gradients", hungry):
            run_trial(point, **settings)
    elif point["trial"] == 4:
        with patch.object(tune, "report", tell_for_ever):
            run_trial(point, **settings)
    else:
        run_trial(point, **settings)


session.run_trial = faulty
session._RETRIES = 2
reporter._SECONDS_BETWEEN = 1
app(["launch", "task.yaml", "--name", "bugs"])
"""


@dataclass(frozen=True)
class Page:
    """A search's own page in MLflow: its text and its pictures."""

    text: str
    files: frozenset[str]


def page(folder: Path) -> Page:
    """What MLflow has of the search at this moment."""
    client = MlflowClient(default_tracking_uri(Storage(str(folder / "runs"))))
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, "tags.`kdsearch.role` = 'search'")
    if not found:
        return Page("", frozenset())
    files = frozenset(file.path for file in client.list_artifacts(found[0].info.run_id, "report"))
    return Page(found[0].data.tags.get("mlflow.note.content", ""), files)


@dataclass(frozen=True)
class Cut:
    """A search that Ctrl-C ended.

    Args:
        folder: its user's.
        output: what it printed.
        before: its page while it ran.
        record: of it.
    """

    folder: Path
    output: str
    before: Page
    record: SearchRecord


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """A search whose trial 1 always fails, and trial 2 at first; trial 3 has too little memory, and
    Ctrl-C came while trial 4 ran."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "start.py").write_text(LAUNCH.replace("tries-", f"{folder}/tries-"))
    search = Command(folder, "start.py")
    search.wait_until(lambda: "3 finished, 1 failed of 5" in search.stdout)

    def is_told() -> bool:
        now = page(folder)
        picture = "2_learning_curves.png"
        return picture in now.text and f"report/{picture}" in now.files

    search.wait_until(is_told)
    before = page(folder)
    search.send(signal.SIGINT)
    done = search.wait()
    assert done.returncode == 130, done.stdout + done.stderr
    record = read_record(Storage(str(folder / "runs")), "bugs")
    return Cut(folder, done.stdout, before, record)


def test_who_fails_again_and_again_is_marked_with_the_reason(cut: Cut) -> None:
    assert "trial 2 continues from its checkpoint, after: once" in cut.output
    assert "trial 1 failed (no such luck (3 tries))" in cut.output
    states = [trial.state for trial in cut.record.trials]
    assert states == ["finished", "failed", "finished", "finished", "interrupted"]
    assert cut.record.trials[1].reason == "no such luck (3 tries)"
    assert cut.record.trials[2].reason == ""
    tries = [len((cut.folder / f"tries-{number}").read_text()) for number in range(5)]
    assert tries == [1, 3, 2, 1, 1]


def test_mlflow_knows_the_reason(cut: Cut) -> None:
    assert cut.record.mlflow_experiment_id is not None
    client = MlflowClient(cut.record.tracking_uri)
    runs = client.search_runs([cut.record.mlflow_experiment_id], "tags.state = 'failed'")
    assert [run.data.tags["kdsearch.reason"] for run in runs] == ["no such luck (3 tries)"]
    assert [run.info.status for run in runs] == ["FAILED"]


def test_who_finds_too_little_memory_on_its_gpu_goes_on_with_batches_in_parts(cut: Cut) -> None:
    assert [trial.parts for trial in cut.record.trials] == [1, 1, 1, 2, 1]
    assert cut.record.trials[3].epochs_done == 3
    assert "finished, batches in 2 parts" in succeeded(cut.folder, "leaderboard", "bugs")


def test_a_search_tells_of_itself_while_it_runs(cut: Cut) -> None:
    assert "**Still running.**" in cut.before.text
    assert "Still running" not in page(cut.folder).text


def test_ctrl_c_leaves_true_states(cut: Cut) -> None:
    assert "stopping; Ctrl-C again ends at once" in cut.output
    assert "ended early" in cut.output
    assert cut.record.state == "interrupted"
    assert cut.record.trials[4].epochs_done == 1
    client = MlflowClient(cut.record.tracking_uri)
    assert cut.record.mlflow_experiment_id is not None
    runs = client.search_runs([cut.record.mlflow_experiment_id])
    assert len(runs) == 7
    assert all(run.info.status != "RUNNING" for run in runs)
