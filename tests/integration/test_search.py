"""A whole search as its user runs it: real Ray, real MLflow store, real files."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import cloudpickle
import pytest
import torch
import yaml
from mlflow import MlflowClient
from optuna.trial import TrialState
from pyarrow import parquet

import kdcore
from kdcore.data.image_data import open_data
from kdcore.execution.execution import Execution
from kdcore.training.checkpoint import read_checkpoint
from search.experiment.space.trial_config import trial_config
from search.export.choice import candidates
from search.record.record import SearchRecord
from search.record.trial_checkpoints import Checkpoints
from search.report.summary import summary
from search.session.search import Search
from tests.integration.commands import Command, succeeded
from tests.integration.finished_search import Finished

pytestmark = pytest.mark.integration

STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@pytest.fixture
def folder(finished: Finished) -> Path:
    """The user's folder."""
    return finished.folder


@pytest.fixture
def record(finished: Finished) -> SearchRecord:
    return finished.record


def test_every_trial_ends_in_a_true_state(record: SearchRecord) -> None:
    assert record.state == "finished"
    assert len(record.trials) == 8
    for trial in record.trials:
        if trial.objective.startswith("kd"):
            assert trial.state == "failed"
            assert "the term kd is not finite at epoch 1, step 1" in trial.reason
        elif trial.epochs_done == trial.epochs:
            assert trial.state == "finished"
        else:
            assert trial.state == "stopped"
    assert record.trials[0].is_control
    assert record.trials[0].state == "finished"
    assert {"failed", "finished", "stopped"} == {trial.state for trial in record.trials}


def test_every_trial_tells_where_it_came_from_and_why_it_was_stopped(
    finished: Finished, record: SearchRecord
) -> None:
    origins = [trial.proposal.by for trial in record.trials if trial.proposal]
    assert origins == ["control", *["published"] * 3, *["tpe"] * 4]
    for trial in record.trials:
        lines = Search(record, finished.storage).explain(trial.number).splitlines()
        assert f"trial {trial.number} " in lines[0].lower()
        if trial.state == "stopped":
            assert trial.verdicts[-1].epoch == trial.epochs_done
            assert lines[-2].endswith("so it was stopped.")
        assert [each.stops for each in trial.verdicts[:-1]] == [False] * len(trial.verdicts[:-1])
        assert bool(trial.verdicts) == (not trial.is_control and trial.state != "failed")
    assert "is the control" in succeeded(finished.folder, "explain", "task-1", "0")


def test_every_trial_computes_as_the_record_says(
    finished: Finished, record: SearchRecord, tmp_path: Path
) -> None:
    assert record.executions is not None
    for trial in record.trials:
        if trial.checkpoint is None:
            continue
        folder = tmp_path / str(trial.number)
        folder.mkdir()
        Checkpoints(finished.storage, trial.checkpoint).restore(folder)
        state = read_checkpoint(folder, torch.device("cpu"))
        assert state is not None
        assert Execution.restored(state["execution"]) == record.executions.students["resnet8"]
        if not trial.is_control:
            teacher = Execution.restored(state["teacher_execution"])
            assert teacher == record.executions.teacher


def test_optuna_knows_the_same_states(folder: Path, record: SearchRecord) -> None:
    (state,) = (folder / "runs/searches/task-1/tune/task-1").glob("searcher-state-*.pkl")
    content = cloudpickle.loads(state.read_bytes())
    known = {
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    trials = content.trials
    assert [trial.state for trial in trials] == [known[trial.state] for trial in record.trials]
    for optuna_trial, trial in zip(trials, record.trials, strict=True):
        if trial.state == "finished":
            assert optuna_trial.value == trial.heldout_accuracy


def test_mlflow_has_one_run_for_each_trial_with_its_state(
    folder: Path, record: SearchRecord
) -> None:
    client = MlflowClient(record.tracking_uri)
    assert record.mlflow_experiment_id is not None
    # Other searches of the same task may have begun.
    own = f"tags.`kdsearch.search` = '{record.name}'"
    runs = client.search_runs([record.mlflow_experiment_id], own)
    roles = Counter(run.data.tags["kdsearch.role"] for run in runs)
    assert roles == {"search": 1, "teacher": 1, "trial": 8, "confirmation": 6}
    trials = {
        int(run.data.tags["kdsearch.trial"]): run
        for run in runs
        if run.data.tags["kdsearch.role"] == "trial"
    }
    for trial in record.trials:
        run = trials[trial.number]
        assert run.info.status == STATES[trial.state]
        assert run.data.tags["mlflow.parentRunId"] == record.mlflow_run_id
        assert run.data.params["objective"] == trial.objective
        for name, value in trial.point.items():
            assert run.data.params[name] == str(value)
        if trial.state != "failed":
            accuracies = client.get_metric_history(run.info.run_id, "heldout_accuracy")
            assert [entry.step for entry in accuracies] == list(range(1, trial.epochs_done + 1))
            rounded = pytest.approx(trial.heldout_accuracy, abs=1e-4)
            assert run.data.metrics["best_heldout_accuracy"] == rounded
        if trial.state == "stopped":
            assert run.data.tags["kdsearch.stop"] == f"asha@epoch{trial.epochs_done}"
    (teacher,) = [run for run in runs if run.data.tags["kdsearch.role"] == "teacher"]
    assert len(client.get_metric_history(teacher.info.run_id, "train_loss")) == 3
    (search,) = [run for run in runs if run.data.tags["kdsearch.role"] == "search"]
    assert search.info.status == "FINISHED"
    assert {"seed", "sampler_seed", "version_torch"} <= set(search.data.params)
    experiment = Path(client.download_artifacts(search.info.run_id, "experiment.yaml"))
    assert yaml.safe_load(experiment.read_text())["search"]["trials"] == 8


def test_the_output_has_plain_lines_the_board_and_the_next_steps(finished: Finished) -> None:
    output = finished.output
    assert "\x1b" not in output
    for words in (
        "teacher: epoch 3/3",
        "trial 0 finished",
        "none (control)",
        "Winner's curse",
        "teacher resnet14",
        "kdsearch ui task-1",
        "kdsearch leaderboard task-1",
        'kdcore.load_student("runs/searches/task-1/best")',
    ):
        assert words in output
    assert len(re.findall(r"again with seed \d+: held-out", output)) == 6
    assert output.splitlines()[-1].endswith("&viewStateShareKey=task-1")


def test_the_searchs_page_has_its_summary_and_pictures(folder: Path, record: SearchRecord) -> None:
    client = MlflowClient(record.tracking_uri)
    assert record.mlflow_run_id is not None
    note = client.get_run(record.mlflow_run_id).data.tags["mlflow.note.content"]
    assert summary(record) in note
    assert "2_learning_curves.png" in note
    files = {file.path for file in client.list_artifacts(record.mlflow_run_id, "report")}
    assert {"report/summary.md", "report/leaderboard.json", "report/2_learning_curves.png"} <= files
    assert "report/7_confusion.png" in files


def test_the_best_student_is_measured_by_class(finished: Finished, record: SearchRecord) -> None:
    found, picked = record.by_class, candidates(record)[0]
    assert found is not None
    assert (found.label, found.seed) == (picked.label, picked.seed)
    assert (found.checkpoint, found.epoch) == (picked.checkpoint, picked.best_epoch)
    right = sum((each.recall or 0.0) * each.support for each in found.classes)
    assert abs(right / found.images - picked.heldout_accuracy) <= 1.5 / found.images
    assert f"**By class, {found}.**" in summary(record)


def test_the_board_is_printed_again_in_every_form(folder: Path, record: SearchRecord) -> None:
    def board(form: str) -> bytes:
        command = Command(folder, "leaderboard", "task-1", "--format", form)
        assert command.wait().returncode == 0
        return command.output

    rows = json.loads(board("json"))
    accuracies = [row["heldout_accuracy"] for row in rows if row["rank"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert len(rows) == 9
    assert parquet.read_table(io.BytesIO(board("parquet"))).to_pylist() == rows
    assert len(list(csv.reader(io.StringIO(board("csv").decode())))) == 10
    assert "none (control)" in board("table").decode()


def test_the_exported_student_is_ready_and_as_good_as_the_board_says(
    folder: Path, record: SearchRecord
) -> None:
    student = kdcore.load_student(folder / "runs/searches/task-1/best")
    data = open_data(record.experiment.data, folder / "runs")
    with torch.no_grad():
        right = (student(data.heldout.images).argmax(1) == data.heldout.labels).double().mean()
    best = max(record.confirmed, key=lambda each: each.test_accuracy)
    accuracies = [max(run.accuracies) for run in best.runs]
    assert any(right.item() == pytest.approx(each, abs=0.001) for each in accuracies)
    card = (folder / "runs/searches/task-1/best/README.md").read_text()
    assert "| teacher resnet14 |" in card
    assert "| none (control) |" in card


def test_best_exports_to_a_folder_of_ones_choice(folder: Path) -> None:
    said = succeeded(folder, "best", "task-1", "--out", "mine", "--no-register")
    assert "exported to mine" in said
    names = sorted(path.name for path in (folder / "mine").iterdir())
    assert names == ["README.md", "confusion.png", "student.json", "student.safetensors"]


def test_a_trial_of_the_board_repeats_with_the_same_numbers(
    folder: Path, record: SearchRecord
) -> None:
    trial = max(record.trials[1:], key=lambda trial: trial.epochs_done)
    config = trial_config(record.experiment, trial.point)
    reports = list(kdcore.distill(config, workspace=folder / "runs"))
    last = reports[trial.epochs_done - 1]
    assert last.best_heldout_accuracy == trial.heldout_accuracy
    assert last.best_epoch == trial.best_epoch
