"""A search that its budget ends, a confirmation that is killed and stopped, and a search that
begins where another one ended: what had ended stays."""

import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.record.files import read_record
from search.record.looks import looks_at
from search.record.record import ConfirmationRun, SearchRecord
from search.record.storage import Storage
from tests.integration.commands import Command, kdsearch, succeeded

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


def runs_of(record: SearchRecord) -> dict[tuple[str, int], ConfirmationRun]:
    """The runs of a confirmation that have ended, by row and seed."""
    return {(each.label, run.seed): run for each in record.confirmed for run in each.runs}


def test_a_confirmation_that_is_cut_off_goes_on_and_repeats_nothing(folder: Path) -> None:
    storage = Storage(str(folder / "runs"))
    before = read_record(storage, "whole")
    arguments = ("confirm", "whole", "--top", "1", "--seeds", "2")

    def ended(count: int) -> bool:
        return len(runs_of(read_record(storage, "whole"))) >= count

    known: dict[tuple[str, int], ConfirmationRun] = {}
    for end in (signal.SIGKILL, signal.SIGINT):
        confirmation = Command(folder, *arguments)
        confirmation.wait_until(partial(ended, len(known) + 1))
        confirmation.send(end)
        done = confirmation.wait()
        now = runs_of(read_record(storage, "whole"))
        assert known.items() <= now.items()
        known = now
    assert "kdsearch confirm whole continues" in done.stdout or len(known) == 6
    said = succeeded(folder, *arguments)
    whole = read_record(storage, "whole")
    assert len(runs_of(whole)) == 6
    assert known.items() <= runs_of(whole).items()
    assert len(re.findall(r"again with seed \d+: held-out", said)) == 6 - len(known)
    assert whole.trials == before.trials
    assert whole.state == "finished"
    looks = [look for look in looks_at(storage, whole.experiment.data) if look.search == "whole"]
    assert len(looks) == 2 + (len(known) < 6)  # none without a run that was missing
    tested = {run.checkpoint for run in runs_of(whole).values()}
    assert {student for look in looks for student in look.students} == tested


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


def test_a_picked_student_is_where_the_next_search_begins(folder: Path) -> None:
    changes = {
        "student": "{backbone: resnet8, weights: runs/searches/whole/best}",
        "objective": "[[none, at]]",
        "training": "{epochs: 1, learning_rate: 0.001}",
    }
    words = [word for change in changes.items() for word in ("--set", "=".join(change))]
    label = "resnet8 (whole/best)"
    said = succeeded(folder, "launch", "task.yaml", "--name", "further", *words)
    assert re.search(rf"student {re.escape(label)}: weights folder \S+/whole/best: ", said)
    assert "MLflow missed" not in said
    storage = Storage(str(folder / "runs"))
    further = read_record(storage, "further")
    assert {trial.student for trial in further.trials} == {label}
    begun = read_record(storage, "whole").control_of("resnet8")
    assert begun is not None
    for trial in further.trials:  # the control too
        assert trial.state == "finished"
        assert trial.accuracies[0] > begun.accuracies[0] + 0.2
    assert (
        "began with: weights whole/best"
        in (folder / "runs/searches/further/best/README.md").read_text()
    )
