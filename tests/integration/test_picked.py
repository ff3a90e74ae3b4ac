"""From a search's best to a served student: confirmed, picked, exported, registered, run again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient

import kdcore
from kdcore.data import ImageData, open_data
from search.graphs import GRAPHS
from search.record import SearchRecord, read_record, write_record
from search.storage import Storage

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 3, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "rkd"]],  # kd is confirmed all the same
    "training": {"epochs": 3, "learning_rate": 0.1},
    "search": {"trials": 3, "asha": None},
    "confirm": {"top": 1, "seeds": 2},
    "licences": {"student": "Apache-2.0"},
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "search", *arguments]


def kdsearch(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with a search whose file asks for a confirmation."""
    path = tmp_path_factory.mktemp("user")
    (path / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    launched = kdsearch(path, "launch", "task.yaml")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "Winner's curse" in launched.stdout
    assert len(re.findall(r"again with seed \d+: held-out", launched.stdout)) == 6
    return path


@pytest.fixture(scope="module")
def storage(folder: Path) -> Storage:
    return Storage(str(folder / "runs"))


@pytest.fixture(scope="module")
def record(storage: Storage) -> SearchRecord:
    return read_record(storage, "task-1")


@pytest.fixture(scope="module")
def data(record: SearchRecord, folder: Path) -> ImageData:
    return open_data(record.experiment.data, folder / "runs")


def test_best_control_and_published_setting_have_the_same_fresh_seeds(
    record: SearchRecord,
) -> None:
    assert record.state == "finished"
    roles = {each.role: each for each in record.confirmed}
    assert set(roles) == {"best", "control", "published"}
    assert roles["published"].label == "kd-resnet8"
    assert roles["published"].objective.startswith("kd(weight=0.9, temperature=4")
    for each in record.confirmed:
        assert list(each.test_accuracies) == [1, 2]
        assert all(len(run.accuracies) == 3 for run in each.runs)
    assert record.confirmed_gain(roles["best"]) is not None


def test_the_leaderboard_has_the_confirmed_first(folder: Path, record: SearchRecord) -> None:
    shown = kdsearch(folder, "leaderboard", "task-1", "--format", "json")
    rows = [row for row in json.loads(shown.stdout) if row["rank"]]
    tested = [row["test_accuracy"] for row in rows]
    assert tested[2] is None
    assert tested[:2] == sorted(tested[:2], reverse=True)
    assert {row["trial"] for row in rows[:2]} == {e.trial for e in record.confirmed} - {None}
    assert "±" in kdsearch(folder, "leaderboard", "task-1").stdout


def test_mlflow_has_a_child_run_for_each_with_its_curve(record: SearchRecord) -> None:
    client = MlflowClient(record.tracking_uri)
    assert record.mlflow_experiment_id is not None
    runs = client.search_runs(
        [record.mlflow_experiment_id],
        "tags.`kdsearch.role` = 'confirmation' and tags.`kdsearch.search` = 'task-1'",
    )
    assert len(runs) == 6
    known = {f"{each.label}-seed{run.seed}": run for each in record.confirmed for run in each.runs}
    for run in runs:
        kept = known[run.data.tags["kdsearch.confirmation"]]
        assert run.data.tags["mlflow.parentRunId"] == record.mlflow_run_id
        assert run.data.metrics["test_accuracy"] == kept.test_accuracy
        history = client.get_metric_history(run.info.run_id, "heldout_accuracy")
        assert tuple(entry.value for entry in history) == kept.accuracies
        assert run.info.status == "FINISHED"


def test_a_cut_confirmation_goes_on_and_repeats_nothing(folder: Path, storage: Storage) -> None:
    def runs(record: SearchRecord) -> dict[tuple[str, int], Any]:
        return {(each.label, run.seed): run for each in record.confirmed for run in each.runs}

    before = read_record(storage, "task-1")
    known = runs(before)
    arguments = ("confirm", "task-1", "--top", "1", "--seeds", "4")
    # Both come after a run has ended, at any moment of another, or when all have.
    for cut in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            command(*arguments), cwd=folder, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if len(runs(read_record(storage, "task-1"))) > len(known):
                break
            time.sleep(0.2)
        os.kill(process.pid, cut)
        said, _ = process.communicate(timeout=120)
        after = runs(read_record(storage, "task-1"))
        assert known.items() <= after.items()
        assert len(after) > len(known) or len(known) == 12
        if process.returncode == 130:
            assert "kdsearch confirm task-1 goes on" in said
        known = after
    done = kdsearch(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = read_record(storage, "task-1")
    assert len(runs(whole)) == 12
    assert known.items() <= runs(whole).items()
    assert len(re.findall(r"again with seed \d+: held-out", done.stdout)) == 12 - len(known)
    assert whole.trials == before.trials
    assert whole.state == "finished"


@pytest.mark.parametrize("form", ["safetensors", *GRAPHS])
def test_best_gives_files_that_reproduce_what_was_recorded(
    folder: Path, data: ImageData, storage: Storage, form: str
) -> None:
    done = kdsearch(folder, "best", "task-1", "--format", form, "--out", form, "--no-register")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "registered" not in done.stdout
    files = {"README.md", "student.json", "student.safetensors"}
    student = kdcore.load_student(folder / form)
    predict: Any = student
    if form in GRAPHS:
        files.add(GRAPHS[form].file)
        predict = GRAPHS[form].load(folder / form / GRAPHS[form].file)
        assert "differ from PyTorch's by at most" in done.stdout
    assert {path.name for path in (folder / form).iterdir()} == files
    with torch.no_grad():
        right = (predict(data.test.images).argmax(1) == data.test.labels).double().mean().item()
        torch.testing.assert_close(
            predict(data.test.images[:3]), student(data.test.images[:3]), rtol=1e-4, atol=1e-4
        )
    best = max(
        (each for each in read_record(storage, "task-1").confirmed),
        key=lambda each: each.test_accuracy,
    )
    assert any(right == pytest.approx(each) for each in best.test_accuracies.values())
    card = (folder / form / "README.md").read_text()
    for words in (
        "| teacher resnet14 |",
        "| none (control) |",
        "±",
        "- student: Apache-2.0",
        "- data: (to be filled in",
        "CPU-hours",
        f"kdsearch rerun task-1 {best.label} --seed ",
    ):
        assert words in card


def test_the_cards_command_makes_the_same_weights_again(folder: Path) -> None:
    assert kdsearch(folder, "best", "task-1", "--out", "first", "--no-register").returncode == 0
    card = (folder / "first/README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("kdsearch rerun")]
    done = kdsearch(folder, *line.split()[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    weights = [folder / place / "student.safetensors" for place in ("first", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert kdcore.load_student(folder / "again") is not None


def test_where_nobody_is_within_the_limits_the_nearest_is_named(folder: Path) -> None:
    done = kdsearch(folder, "best", "task-1", "--max-params", "1000", "--out", "none")
    assert done.returncode == 2
    assert re.search(r"77,754 parameters, but --max-params is 1,000", done.stderr)
    assert not (folder / "none").exists()


def test_weights_that_changed_are_not_exported(folder: Path, storage: Storage) -> None:
    record = read_record(storage, "task-1")
    confirmed = tuple(
        each.model_copy(
            update={
                "runs": tuple(
                    run.model_copy(update={"test_accuracy": (run.test_accuracy or 0) - 0.2})
                    for run in each.runs
                )
            }
        )
        for each in record.confirmed
    )
    write_record(storage, record.model_copy(update={"name": "forged", "confirmed": confirmed}))
    done = kdsearch(folder, "best", "forged", "--out", "forged")
    assert done.returncode == 2
    now, then = re.findall(r"(\d+\.\d\d) %", done.stderr)
    assert float(now) == pytest.approx(float(then) + 20, abs=0.011)
    assert not (folder / "forged").exists()


def test_a_row_trained_again_is_equal_and_a_changed_record_is_found(
    folder: Path, storage: Storage
) -> None:
    for arguments in (("1",), ("kd-resnet8", "--seed", "2")):
        done = kdsearch(folder, "rerun", "task-1", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "equal: all 3 epochs" in done.stdout
    record = read_record(storage, "task-1")
    first, second, third = record.trials[1].accuracies
    trial = record.trials[1].model_copy(update={"accuracies": (first, second + 0.01, third)})
    trials = (record.trials[0], trial, *record.trials[2:])
    write_record(storage, record.model_copy(update={"name": "other", "trials": trials}))
    done = kdsearch(folder, "rerun", "other", "1")
    assert done.returncode == 1
    assert re.search(r"different: epoch 2: heldout_accuracy .* differs by -0.01\b", done.stdout)
    assert kdsearch(folder, "rerun", "task-1", "9").returncode == 2


def test_the_champion_changes_only_for_a_better_one_and_answers_requests(
    folder: Path, data: ImageData, record: SearchRecord
) -> None:
    client = MlflowClient(record.tracking_uri)

    def champion() -> str:
        return str(client.get_model_version_by_alias("kdsearch-task", "champion").version)

    first = kdsearch(folder, "best", "task-1")
    assert first.returncode == 0, first.stderr
    assert "registered as kdsearch-task, version 1: the first champion" in first.stdout
    again = kdsearch(folder, "best", "task-1")
    assert "version 1: the champion already" in again.stdout
    worse = ["--set", "training.epochs=1", "--set", "search.trials=2", "--set", "confirm=null"]
    launched = kdsearch(folder, "launch", "task.yaml", "--name", "worse", *worse)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    second = kdsearch(folder, "best", "worse")
    assert "version 2: version 1 stays the champion" in second.stdout
    assert champion() == "1"
    version = client.get_model_version("kdsearch-task", "1")
    student = kdcore.load_student(folder / "runs/searches/task-1/best")
    with torch.no_grad():
        right = student(data.test.images).argmax(1) == data.test.labels
    accuracy = float(version.tags["kdsearch.test_accuracy"])
    assert accuracy == pytest.approx(right.double().mean().item())
    assert "## Licences" in (version.description or "")
    images = data.test.images[:4]
    answer = _served(record.tracking_uri, {"inputs": images.tolist()})
    logits = torch.tensor(answer["predictions"])
    torch.testing.assert_close(logits, student(images), rtol=1e-4, atol=1e-4)


def _served(tracking_uri: str, request: dict[str, Any]) -> Any:
    """What the champion answers, served by MLflow in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # MLflow starts uvicorn by its name, as it lies beside this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    serve += ["-m", "models:/kdsearch-task@champion", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        serve,
        env={**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": tracking_uri},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 200
        while True:
            assert server.poll() is None
            assert time.monotonic() < deadline
            try:
                with urllib.request.urlopen(f"{base}/ping", timeout=5):
                    break
            except OSError:
                time.sleep(0.3)
        asked = urllib.request.Request(
            f"{base}/invocations",
            json.dumps(request).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return json.loads(reply.read())
    finally:
        server.terminate()
        server.wait(30)


def test_a_registry_that_is_away_does_not_fail_the_export(folder: Path, storage: Storage) -> None:
    record = read_record(storage, "task-1")
    away = {"name": "away", "tracking_uri": "http://127.0.0.1:9"}
    write_record(storage, record.model_copy(update=away))
    done = kdsearch(folder, "best", "away", "--out", "exported")
    assert done.returncode == 0, done.stderr
    assert "not registered in MLflow" in done.stderr
    assert kdcore.load_student(folder / "exported") is not None
