"""From a search's best to a served student: confirmed, picked, exported, registered, run again."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

import kdcore
from kdcore.data.image_data import ImageData, open_data
from search.export.graph_formats import GRAPHS, graph_accuracy, load_onnx
from search.export.int8 import INT8
from search.record.files import read_record
from search.record.looks import looks_at
from search.record.record import SearchRecord
from search.record.storage import Storage
from tests.integration.commands import kdsearch, succeeded
from tests.integration.finished_search import Finished
from tests.integration.ray_cluster import free_port
from tests.records import write_record

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(finished: Finished) -> Path:
    """The user's folder."""
    return finished.folder


@pytest.fixture
def storage(finished: Finished) -> Storage:
    return finished.storage


@pytest.fixture
def record(finished: Finished) -> SearchRecord:
    return finished.record


@pytest.fixture
def data(record: SearchRecord, folder: Path) -> ImageData:
    return open_data(record.experiment.data, folder / "runs")


@pytest.fixture(scope="module")
def worse(finished: Finished) -> str:
    """What a second search printed, of one epoch; its tracking server was away."""
    changes = {
        "training.epochs": "1",
        "search.trials": "2",
        "search.concurrent_trials": "1",
        "narrow": "{}",
        "confirm": "null",
    }
    return succeeded(
        finished.folder,
        *("launch", "task.yaml", "--name", "worse", "--tracking-uri", "http://127.0.0.1:9"),
        *(word for change in changes.items() for word in ("--set", "=".join(change))),
    )


def test_a_second_launch_finds_the_teacher_and_needs_no_tracking_server(
    folder: Path, storage: Storage, record: SearchRecord, worse: str
) -> None:
    assert "teacher resnet14: found" in worse
    assert "search worse" in worse
    assert "MLflow missed" in worse
    assert {trial.state for trial in read_record(storage, "worse").trials} == {"finished"}
    assert read_record(storage, "task-1") == record
    assert "none (control)" in succeeded(folder, "compare", "task-1", "worse")


def test_best_control_and_published_setting_have_the_same_fresh_seeds(
    record: SearchRecord,
) -> None:
    assert record.state == "finished"
    roles = {each.role: each for each in record.confirmed}
    assert set(roles) == {"best", "control", "published"}
    assert roles["published"].label == "kd-resnet8"
    assert roles["published"].objective.startswith(
        "kd(weight=0.9, cross_entropy=0.1, temperature=4"
    )
    for each in record.confirmed:
        assert list(each.test_accuracies) == [1, 2]
        assert all(len(run.accuracies) == 4 for run in each.runs)
    assert record.confirmed_gain(roles["best"]) is not None


def test_the_confirmation_of_a_launch_is_one_look_at_the_test_split(
    record: SearchRecord, storage: Storage
) -> None:
    looks = looks_at(storage, record.experiment.data)
    (look,) = (look for look in looks if (look.by, look.search) == ("confirm", "task-1"))
    runs = [run for each in record.confirmed for run in each.runs]
    assert sorted(look.students) == sorted(str(run.checkpoint) for run in runs)


def test_the_leaderboard_has_the_confirmed_first(folder: Path, record: SearchRecord) -> None:
    shown = succeeded(folder, "leaderboard", "task-1", "--format", "json")
    rows = [row for row in json.loads(shown) if row["rank"]]
    tested = [row["test_accuracy"] for row in rows]
    assert tested[2:] == [None] * (len(rows) - 2)
    assert tested[:2] == sorted(tested[:2], reverse=True)
    assert {row["trial"] for row in rows[:2]} == {e.trial for e in record.confirmed} - {None}
    assert "±" in succeeded(folder, "leaderboard", "task-1")


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
        rounded = pytest.approx(kept.test_accuracy, abs=1e-4)
        assert run.data.metrics["test_accuracy"] == rounded
        history = client.get_metric_history(run.info.run_id, "heldout_accuracy")
        logged = [entry.value for entry in history]
        assert logged == pytest.approx(list(kept.accuracies), abs=1e-4)
        assert run.info.status == "FINISHED"


@pytest.mark.parametrize("form", ["safetensors", *GRAPHS])
def test_best_gives_files_that_reproduce_what_was_recorded(
    folder: Path, data: ImageData, storage: Storage, form: str
) -> None:
    quantised = ("--int8", "--max-loss", "100") if form == "onnx" else ()
    arguments = ("best", "task-1", "--format", form, *quantised, "--out", form, "--no-register")
    said = succeeded(folder, *arguments)
    assert "registered" not in said
    files = {"README.md", "confusion.png", "student.json", "student.safetensors"}
    student = kdcore.load_student(folder / form)
    predict: Any = student
    if form in GRAPHS:
        files.add(GRAPHS[form].file)
        predict = GRAPHS[form].load(folder / form / GRAPHS[form].file)
        assert "differ from PyTorch's by at most" in said
    if quantised:
        files.add(INT8)
        assert re.search(rf"{INT8}: held-out .* %, test .* %; int8 costs .* points held out", said)
        again = f"kdsearch best task-1 --format onnx {shlex.join(quantised)}"
        assert again in (folder / form / "README.md").read_text()
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
    section = card.partition("## Files\n")[2].partition("\n## ")[0]
    for file in files - {"README.md", "confusion.png", "student.json"}:
        (row,) = re.findall(rf"\| {file} \| ([\d,]+) \| (.*) \| (.*) \| .* \| `(.*)` \|", section)
        content = (folder / form / file).read_bytes()
        assert (row[0], row[3]) == (f"{len(content):,}", hashlib.sha256(content).hexdigest())
        measured = load_onnx(folder / form / INT8) if file == INT8 else predict
        for split, cell in ((data.heldout, row[1]), (data.test, row[2])):
            with torch.no_grad():
                assert cell == f"{100 * graph_accuracy(measured, split):.2f}"


def test_the_cards_command_makes_the_same_weights_again(folder: Path) -> None:
    succeeded(folder, "best", "task-1", "--out", "first", "--no-register")
    card = (folder / "first/README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("kdsearch rerun")]
    succeeded(folder, *line.split()[1:])
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
    folder: Path, record: SearchRecord, storage: Storage
) -> None:
    trial = max(record.trials[1:], key=lambda trial: trial.epochs_done)
    number = str(trial.number)
    for arguments in ((number,), ("kd-resnet8", "--seed", "2")):
        said = succeeded(folder, "rerun", "task-1", *arguments)
        assert "equal: all 4 epochs" in said
    first, second, *later = trial.accuracies
    changed = trial.model_copy(update={"accuracies": (first, second + 0.01, *later)})
    trials = tuple(changed if each is trial else each for each in record.trials)
    write_record(storage, record.model_copy(update={"name": "other", "trials": trials}))
    done = kdsearch(folder, "rerun", "other", number)
    assert done.returncode == 1
    assert re.search(r"different: epoch 2: heldout_accuracy .* differs by -0.01\b", done.stdout)
    assert kdsearch(folder, "rerun", "task-1", "9").returncode == 2


def test_the_champion_changes_only_for_a_better_one_and_answers_requests(
    folder: Path, data: ImageData, storage: Storage, record: SearchRecord, worse: str
) -> None:
    client = MlflowClient(record.tracking_uri)

    def champion() -> str:
        return str(client.get_model_version_by_alias("kdsearch-task", "champion").version)

    first = succeeded(folder, "best", "task-1", "--out", "registered")
    assert "registered as kdsearch-task, version 1: the first champion" in first
    assert "version 1: the champion already" in succeeded(
        folder, "best", "task-1", "--out", "registered"
    )
    keys = ("tracking_uri", "mlflow_experiment_id", "mlflow_run_id")
    known = {key: getattr(record, key) for key in keys}
    logged = read_record(storage, "worse").model_copy(update={"name": "logged", **known})
    write_record(storage, logged)
    second = succeeded(folder, "best", "logged", "--out", "second")
    figures = r"\d+\.\d\d % held out against"
    assert re.search(f"version 2: version 1 stays the champion: {figures}", second)
    assert champion() == "1"
    loser = client.get_model_version("kdsearch-task", "2").description or ""
    assert re.search(
        rf"## Champion\n\nVersion 2 of kdsearch-task: version 1 stays .*{figures}", loser
    )
    version = client.get_model_version("kdsearch-task", "1")
    student = kdcore.load_student(folder / "registered")
    with torch.no_grad():
        right = student(data.test.images).argmax(1) == data.test.labels
    accuracy = float(version.tags["kdsearch.test_accuracy"])
    assert accuracy == pytest.approx(right.double().mean().item())
    card = version.description or ""
    assert "## Licences" in card
    assert "kdsearch-task: the first champion" in card  # registered again, it tells it still
    assert "Test split looked at" in card
    images = data.test.images[:4]
    answer = _served(record.tracking_uri, {"inputs": images.tolist()})
    logits = torch.tensor(answer["predictions"])
    torch.testing.assert_close(logits, student(images), rtol=1e-4, atol=1e-4)


def _served(tracking_uri: str, request: dict[str, Any]) -> Any:
    """What the champion answers, served by MLflow in a process of its own."""
    port = free_port()
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


def test_a_registry_that_is_away_does_not_fail_the_export(folder: Path, worse: str) -> None:
    done = kdsearch(folder, "best", "worse", "--out", "exported")
    assert done.returncode == 0, done.stderr
    assert "not registered in MLflow" in done.stderr
    assert kdcore.load_student(folder / "exported") is not None
