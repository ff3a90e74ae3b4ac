"""A search that its budget ends, and a confirmation that is killed: what had ended stays."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.record.files import read_record
from search.record.storage import Storage
from tests.integration.commands import Command, kdsearch, succeeded
from tests.integration.test_picked import runs_of

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "rkd"]],
    "training": {"epochs": 3, "learning_rate": 0.1},
    "search": {"trials": 2, "asha": None},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with a search that has ended."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    succeeded(folder, "launch", "task.yaml", "--name", "whole")
    return folder


def test_a_confirmation_that_is_killed_goes_on_and_repeats_nothing(folder: Path) -> None:
    storage = Storage(str(folder / "runs"))
    before = read_record(storage, "whole")
    arguments = ("confirm", "whole", "--top", "1", "--seeds", "3")
    confirmation = Command(folder, *arguments)
    confirmation.wait_until(lambda: bool(runs_of(read_record(storage, "whole"))))
    confirmation.send(signal.SIGKILL)
    confirmation.wait()
    known = runs_of(read_record(storage, "whole"))
    said = succeeded(folder, *arguments)
    whole = read_record(storage, "whole")
    assert len(runs_of(whole)) == 9
    assert known.items() <= runs_of(whole).items()
    assert len(re.findall(r"again with seed \d+: held-out", said)) == 9 - len(known)
    assert whole.trials == before.trials
    assert whole.state == "finished"


def test_a_spent_budget_ends_a_search_in_true_states(folder: Path) -> None:
    budget = ["--set", "search.hours=0.003", "--set", "training.epochs=2000"]
    cut = kdsearch(folder, "launch", "task.yaml", "--name", "short", *budget)
    assert cut.returncode == 1, cut.stdout + cut.stderr
    assert "the budget of 0.003 hours is spent; the search ends with what it has" in cut.stdout
    assert "No trial finished" in cut.stdout
    short = read_record(Storage(str(folder / "runs")), "short")
    assert short.state == "finished"
    assert {trial.state for trial in short.trials} <= {"interrupted", "failed"}
    client = MlflowClient(short.tracking_uri)
    assert short.mlflow_experiment_id is not None
    runs = client.search_runs([short.mlflow_experiment_id], "tags.`kdsearch.search` = 'short'")
    assert all(run.info.status != "RUNNING" for run in runs)
    refused = kdsearch(folder, "resume", "short")
    assert refused.returncode == 2
    assert "the budget of 0.003 hours is spent" in refused.stderr
