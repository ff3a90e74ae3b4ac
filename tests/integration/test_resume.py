"""A search whose driver is killed again and again: nothing is lost, nothing is there twice."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

import kdcore
from search.record import SearchRecord, read_record
from search.space import trial_config
from search.storage import Storage

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd", "at"]],
    "training": {"epochs": 12, "learning_rate": 0.1, "schedule": "constant"},
    "search": {"trials": 6, "asha": {"grace_epochs": 3, "reduction": 2}},
}

KILLS = 5

STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
STATUS = {"finished": "FINISHED", "stopped": "KILLED"}


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "search", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def epochs_in(folder: Path) -> int:
    """How many epochs the record has, whatever state it is in."""
    if not (folder / "runs/searches/killed/search.json").exists():
        return 0
    record = read_record(Storage(str(folder / "runs")), "killed")
    return sum(trial.epochs_done for trial in record.trials)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a search that was killed at random moments and has come to its end."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    moments = random.Random(0)
    arguments = ["launch", "task.yaml", "--name", "killed"]
    for _ in range(KILLS):
        process = start(folder, *arguments)
        arguments = ["resume", "killed"]
        before, deadline = epochs_in(folder), time.monotonic() + 300
        while epochs_in(folder) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 3))
        process.send_signal(signal.SIGKILL)  # nothing where it has ended by itself
        process.communicate()
        if read_record(Storage(str(folder / "runs")), "killed").state == "finished":
            arguments = ["resume", "killed", "--more-trials", "1"]
    process = start(folder, "resume", "killed")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> SearchRecord:
    return read_record(Storage(str(folder / "runs")), "killed")


@pytest.fixture(scope="module")
def runs(record: SearchRecord) -> Mapping[str, list[Run]]:
    """MLflow's runs of the search, by role."""
    assert record.mlflow_experiment_id is not None
    found: dict[str, list[Run]] = {}
    for run in MlflowClient(record.tracking_uri).search_runs([record.mlflow_experiment_id]):
        found.setdefault(run.data.tags["kdsearch.role"], []).append(run)
    return found


def test_every_trial_is_there_once_and_ended(record: SearchRecord) -> None:
    assert record.state == "finished"
    trials = record.experiment.search.trials
    assert [trial.number for trial in record.trials] == list(range(trials))
    assert {trial.state for trial in record.trials} <= STATES.keys()
    for trial in record.trials:
        assert (trial.epochs_done == trial.epochs) == (trial.state == "finished")
        assert len(trial.accuracies) == trial.epochs_done
    assert record.trials[0].state == "finished"


def test_the_reports_are_those_of_undisturbed_trials(folder: Path, record: SearchRecord) -> None:
    for trial in record.trials:
        config = trial_config(record.experiment, trial.point)
        reports = kdcore.distill(config, workspace=folder / "runs")
        pairs = zip(trial.accuracies, reports, strict=False)
        assert all(accuracy == report.heldout_accuracy for accuracy, report in pairs)


def test_optuna_has_each_trial_once_in_its_true_state(folder: Path, record: SearchRecord) -> None:
    states = (folder / "runs/searches/killed/tune").glob("searcher-state-*.pkl")
    newest = max(states, key=lambda path: path.stat().st_mtime)
    trials = cloudpickle.loads(newest.read_bytes())["_ot_study"].trials
    assert [trial.state for trial in trials] == [STATES[trial.state] for trial in record.trials]
    for known, trial in zip(trials, record.trials, strict=True):
        assert sorted(known.intermediate_values) == list(range(1, trial.epochs_done + 1))
        assert known.params.items() <= trial.point.items()


def test_mlflow_has_one_run_for_each_trial_with_every_epoch_once(
    record: SearchRecord, runs: Mapping[str, list[Run]]
) -> None:
    assert [len(runs[role]) for role in ("search", "teacher", "trial")] == [
        *(1, 1, len(record.trials))
    ]
    client = MlflowClient(record.tracking_uri)
    by_number = {int(run.data.tags["kdsearch.trial"]): run for run in runs["trial"]}
    for trial in record.trials:
        run = by_number[trial.number]
        assert run.info.status == STATUS[trial.state]
        history = client.get_metric_history(run.info.run_id, "heldout_accuracy")
        logged = [(entry.step, entry.value) for entry in history]
        assert sorted(logged) == list(enumerate(trial.accuracies, start=1))
    assert runs["search"][0].info.status == "FINISHED"
    assert runs["search"][0].info.run_id == record.mlflow_run_id


def test_a_finished_search_is_extended_with_all_that_it_knows(
    folder: Path, record: SearchRecord
) -> None:
    process = start(folder, "resume", "killed", "--more-trials", "2")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    extended = read_record(Storage(str(folder / "runs")), "killed")
    before = len(record.trials)
    assert extended.trials[:before] == record.trials
    assert [trial.number for trial in extended.trials] == list(range(before + 2))
    assert extended.experiment.search.trials == before + 2
    points = [trial.point for trial in extended.trials]
    assert all(point not in points[:index] for index, point in enumerate(points))
