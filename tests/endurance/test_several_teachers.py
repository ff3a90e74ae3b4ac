"""A search with two teachers, killed while it prepares them and while its trials run."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from kdcore.teacher_cache.files import FOLDER
from search.errors import KdsearchError
from search.record.files import read_record
from search.record.record import SearchRecord
from search.record.storage import Storage
from tests.integration import checks
from tests.integration.commands import Command, succeeded

pytestmark = pytest.mark.integration

TEACHERS = ("resnet8", "resnet14")
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": [
        {"backbone": name, "training": {"epochs": 1, "learning_rate": 0.1}} for name in TEACHERS
    ],
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 8, "learning_rate": 0.1, "schedule": "constant"},
    "search": {"trials": 4, "asha": None, "concurrent_trials": 1},
}


def record_in(folder: Path) -> SearchRecord | None:
    try:
        return read_record(Storage(str(folder / "runs")), "two")
    except KdsearchError:
        return None


def killed_when(
    folder: Path, reached: Callable[[SearchRecord], bool], *arguments: str
) -> SearchRecord:
    """What is in the record of a search that was killed when it had come so far."""
    command = Command(folder, *arguments)
    command.wait_until(lambda: (now := record_in(folder)) is not None and reached(now))
    command.send(signal.SIGKILL)
    command.wait()
    record = record_in(folder)
    assert record is not None
    return record


def test_a_search_with_two_teachers_goes_on_wherever_it_was_killed(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    checked = succeeded(tmp_path, "check", "task.yaml")
    assert all(f"teacher  {name}, to be prepared" in checked for name in TEACHERS)
    launch = ("launch", "task.yaml", "--name", "two")
    killed = killed_when(tmp_path, lambda record: "resnet8" in record.ready_teachers, *launch)
    folder = killed.ready_teachers["resnet8"].folder
    weights = (tmp_path / "runs" / folder / "teacher.safetensors").stat()

    def taught(record: SearchRecord) -> bool:
        return any(trial.epochs_done and not trial.is_control for trial in record.trials)

    killed = killed_when(tmp_path, taught, "resume", "two")
    assert tuple(killed.ready_teachers) == TEACHERS
    printed = succeeded(tmp_path, "resume", "two")
    assert all(f"teacher {name}: found" in printed for name in TEACHERS)
    again = (tmp_path / "runs" / folder / "teacher.safetensors").stat()
    assert again.st_mtime_ns == weights.st_mtime_ns, "it was trained once"

    record = record_in(tmp_path)
    assert record is not None
    checks.nothing_was_lost(record, tmp_path / "runs", teachers=(2,))
    assert [record.teacher_of(trial) for trial in record.trials[:3]] == ["", *TEACHERS]
    folders = {path.name for path in (tmp_path / "runs/teachers").iterdir() if path.is_dir()}
    assert folders == {Path(each.folder).name for each in record.ready_teachers.values()}
    for each in record.ready_teachers.values():
        assert len(list((tmp_path / "runs" / FOLDER).glob(f"{Path(each.folder).name}-*"))) == 1
    client = MlflowClient(record.tracking_uri)
    runs = client.search_runs(
        [str(record.mlflow_experiment_id)], "tags.`kdsearch.role` = 'teacher'"
    )
    assert {run.data.tags["kdsearch.teacher"] for run in runs} == set(TEACHERS)
    assert (tmp_path / "runs/searches/two/report/8_accuracy_by_teacher.png").exists()
    assert "from resnet14" in succeeded(tmp_path, "explain", "two", "2")
    assert "equal: all 8 epochs" in succeeded(tmp_path, "rerun", "two", "2")
