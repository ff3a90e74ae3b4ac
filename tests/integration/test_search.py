"""A whole search as its user runs it: real Ray, real MLflow store, real files."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
import yaml
from mlflow import MlflowClient
from optuna.trial import TrialState
from pyarrow import parquet

import kdcore
from kdcore.data import open_data
from search.record import SearchRecord, read_record
from search.report import summary
from search.storage import Storage
from tests.integration.ray_cluster import wait_until

pytestmark = pytest.mark.integration

# kd always fails here: such a weight leaves the range of float32.
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 3, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd", "at", "rkd"]],
    "training": {"epochs": 4, "learning_rate": 0.1},
    "search": {"trials": 8, "asha": {"grace_epochs": 1, "reduction": 2}},
    "narrow": {"kd.weight": [1e39, 2e39]},
}

STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def kdsearch(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "search", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with the experiment's file."""
    path = tmp_path_factory.mktemp("user")
    (path / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return path


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """What the first launch printed."""
    launched = kdsearch(folder, "launch", "task.yaml")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert launched.stderr == ""
    return launched.stdout


@pytest.fixture(scope="module")
def record(folder: Path, output: str) -> SearchRecord:
    return read_record(Storage(str(folder / "runs")), "task-1")


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


def test_optuna_knows_the_same_states(folder: Path, record: SearchRecord) -> None:
    (state,) = (folder / "runs/searches/task-1/tune").glob("searcher-state-*.pkl")
    content = cloudpickle.loads(state.read_bytes())
    known = {
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    trials = content["_ot_study"].trials
    assert [trial.state for trial in trials] == [known[trial.state] for trial in record.trials]
    for optuna_trial, trial in zip(trials, record.trials, strict=True):
        if trial.state == "finished":
            assert optuna_trial.value == trial.heldout_accuracy


def test_mlflow_has_one_run_for_each_trial_with_its_state(
    folder: Path, record: SearchRecord
) -> None:
    client = MlflowClient(record.tracking_uri)
    assert record.mlflow_experiment_id is not None
    runs = client.search_runs([record.mlflow_experiment_id])
    roles = [run.data.tags["kdsearch.role"] for run in runs]
    assert sorted(roles) == ["search", "teacher", *["trial"] * 8]
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
            assert run.data.metrics["best_heldout_accuracy"] == trial.heldout_accuracy
        if trial.state == "stopped":
            assert run.data.tags["kdsearch.stop"] == f"asha@epoch{trial.epochs_done}"
    (teacher,) = [run for run in runs if run.data.tags["kdsearch.role"] == "teacher"]
    assert len(client.get_metric_history(teacher.info.run_id, "train_loss")) == 3
    (search,) = [run for run in runs if run.data.tags["kdsearch.role"] == "search"]
    assert search.info.status == "FINISHED"
    assert {"seed", "sampler_seed", "version_torch"} <= set(search.data.params)
    experiment = Path(client.download_artifacts(search.info.run_id, "experiment.yaml"))
    assert yaml.safe_load(experiment.read_text())["search"]["trials"] == 8


def test_the_output_has_plain_lines_the_board_and_the_next_steps(output: str) -> None:
    assert "\x1b" not in output
    for words in (
        "teacher: epoch 3/3",
        "trial 0 finished",
        "none (control)",
        "teacher resnet14",
        "kdsearch ui task-1",
        "kdsearch leaderboard task-1",
        'kdcore.load_student("runs/searches/task-1/best")',
    ):
        assert words in output
    assert output.splitlines()[-1].endswith("&viewStateShareKey=task-1")


def test_the_searchs_page_has_its_summary_and_pictures(folder: Path, record: SearchRecord) -> None:
    client = MlflowClient(record.tracking_uri)
    assert record.mlflow_run_id is not None
    note = client.get_run(record.mlflow_run_id).data.tags["mlflow.note.content"]
    assert summary(record) in note
    assert "2_learning_curves.png" in note
    files = {file.path for file in client.list_artifacts(record.mlflow_run_id, "report")}
    assert {"report/summary.md", "report/leaderboard.json", "report/2_learning_curves.png"} <= files


def test_the_board_is_printed_again_in_every_form(folder: Path, record: SearchRecord) -> None:
    def board(form: str) -> bytes:
        command = [sys.executable, "-m", "search", "leaderboard", "task-1", "--format", form]
        return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout

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
        right = (student(data.heldout.images).argmax(1) == data.heldout.labels).float().mean()
    finished = [t.heldout_accuracy for t in record.trials if t.state == "finished"]
    best = max(accuracy for accuracy in finished if accuracy is not None)
    assert right.item() == pytest.approx(best, abs=0.001)
    card = (folder / "runs/searches/task-1/best/README.md").read_text()
    assert "| teacher resnet14 |" in card
    assert "| none (control) |" in card


def test_best_exports_to_a_folder_of_ones_choice(folder: Path, record: SearchRecord) -> None:
    done = kdsearch(folder, "best", "task-1", "--out", "mine")
    assert done.returncode == 0, done.stderr
    assert "exported to mine" in done.stdout
    names = sorted(path.name for path in (folder / "mine").iterdir())
    assert names == ["README.md", "student.json", "student.safetensors"]


def test_a_trial_of_the_board_repeats_with_the_same_numbers(
    folder: Path, record: SearchRecord
) -> None:
    from search.space import trial_config

    trial = max(record.trials[1:], key=lambda trial: trial.epochs_done)
    config = trial_config(record.experiment, trial.point)
    reports = list(kdcore.distill(config, workspace=folder / "runs"))
    last = reports[trial.epochs_done - 1]
    assert last.best_heldout_accuracy == trial.heldout_accuracy
    assert last.best_epoch == trial.best_epoch


def test_a_second_launch_finds_the_teacher_and_is_a_new_search(
    folder: Path, record: SearchRecord
) -> None:
    launched = kdsearch(folder, "launch", "task.yaml", "--set", "search.trials=2")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "teacher resnet14: found" in launched.stdout
    assert "search task-2" in launched.stdout
    assert read_record(Storage(str(folder / "runs")), "task-1") == record
    compared = kdsearch(folder, "compare", "task-1", "task-2")
    assert compared.returncode == 0, compared.stderr
    (control,) = (line for line in compared.stdout.splitlines() if "none (control)" in line)
    assert control.split()[-1] == "+0.00"  # the same settings and seed


def test_a_dead_tracking_server_never_ends_a_search(folder: Path, record: SearchRecord) -> None:
    arguments = ["--set", "search.trials=2", "--name", "blind"]
    launched = kdsearch(
        folder, "launch", "task.yaml", *arguments, "--tracking-uri", "http://127.0.0.1:9"
    )
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "MLflow missed" in launched.stdout
    assert read_record(Storage(str(folder / "runs")), "blind").state == "finished"


def test_a_search_tells_of_itself_while_it_runs_and_ctrl_c_leaves_true_states(
    folder: Path, record: SearchRecord
) -> None:
    every_second = (
        "from search import report, cli; report._SECONDS_BETWEEN = 1; cli.app(prog_name='kdsearch')"
    )
    command = [sys.executable, "-c", every_second, "launch", "task.yaml", "--name", "cut"]
    command += ["--set", "training.epochs=4000", "--set", "search.asha=null"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    client = MlflowClient(record.tracking_uri)
    assert record.mlflow_experiment_id is not None
    experiments = [record.mlflow_experiment_id]

    def page() -> tuple[str, set[str]]:
        """The text and the files of the search's own run."""
        wanted = "tags.`kdsearch.search` = 'cut' and tags.`kdsearch.role` = 'search'"
        found = client.search_runs(experiments, wanted)
        if not found:
            return "", set()
        files = {file.path for file in client.list_artifacts(found[0].info.run_id, "report")}
        return found[0].data.tags.get("mlflow.note.content", ""), files

    wait_until(lambda: "report/2_learning_curves.png" in page()[1], 180)
    wait_until(lambda: "2_learning_curves.png" in page()[0], 60)
    assert "**Still running.**" in page()[0]
    os.kill(process.pid, signal.SIGINT)
    stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping; Ctrl-C again ends at once" in stdout
    assert "ended early" in stdout
    cut = read_record(Storage(str(folder / "runs")), "cut")
    assert cut.state == "interrupted"
    assert "running" not in {trial.state for trial in cut.trials}
    assert "Still running" not in page()[0]
    runs = client.search_runs(experiments, "tags.`kdsearch.search` = 'cut'")
    assert all(run.info.status != "RUNNING" for run in runs)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def ui(folder: Path, record: SearchRecord, request: pytest.FixtureRequest) -> Iterator[str]:
    """The link that `kdsearch ui` prints, while its server runs."""
    command = [sys.executable, "-m", "search", "ui", "task-1"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    link = process.stdout.readline().strip()
    try:
        yield link
    finally:
        os.kill(process.pid, request.param)
        process.communicate(timeout=30)
    assert process.returncode == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(link.partition("/#/")[0])


def test_ui_serves_mlflow_on_this_machine_and_links_to_the_search(
    ui: str, record: SearchRecord
) -> None:
    base, _, place = ui.partition("/#/")
    assert base.startswith("http://127.0.0.1:")
    assert place.startswith(f"experiments/{record.mlflow_experiment_id}/runs?")
    assert "task-1" in place
    with urllib.request.urlopen(base) as page:
        assert b"MLflow" in page.read()
    client = MlflowClient(base)
    assert record.mlflow_run_id is not None
    assert client.get_run(record.mlflow_run_id).info.status == "FINISHED"


def test_a_spent_budget_ends_a_search_in_true_states(folder: Path, record: SearchRecord) -> None:
    budget = ["--set", "search.hours=0.003", "--set", "training.epochs=2000"]
    cut = kdsearch(folder, "launch", "task.yaml", "--name", "short", *budget)
    assert cut.returncode == 1, cut.stdout + cut.stderr
    assert "the budget of 0.003 hours is spent; the search ends with what it has" in cut.stdout
    assert "No trial came to its end" in cut.stdout
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
