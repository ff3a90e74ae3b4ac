"""A driver that stood still for longer than it may, while another went on with its search."""

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.record.files import read_record, search_names
from search.record.storage import Storage
from tests.integration import checks
from tests.integration.commands import EAGER, Command, wait_until

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd", "at"]],
    "training": {"epochs": 12, "learning_rate": 0.1, "schedule": "constant"},
    "search": {"trials": 6, "asha": {"grace_epochs": 3, "reduction": 2}},
}

SHORT = EXPERIMENT | {
    "training": {"epochs": 6, "learning_rate": 0.1, "schedule": "constant"},
    "search": {"trials": 3, "asha": None},
}

START = (
    EAGER
    + """
from datetime import timedelta

from search.cli.app import main
from search.record import owner

owner.SILENCE = timedelta(seconds=20)
owner.HEARTBEAT = timedelta(seconds=2)
main()
"""
)


def test_a_frozen_driver_that_was_replaced_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(SHORT))
    (tmp_path / "start.py").write_text(START)
    storage = Storage(str(tmp_path / "runs"))
    frozen = Command(tmp_path, "start.py", "launch", "task.yaml", "--name", "frozen")
    frozen.wait_until(lambda: b"held-out" in frozen.output and epochs(storage) > 0)
    frozen.send(signal.SIGSTOP)
    refusals: list[str] = []

    def resumed() -> bool:
        done = Command(tmp_path, "start.py", "resume", "frozen").wait()
        refusals.append(done.stderr)
        return done.returncode == 0

    wait_until(resumed)
    assert any("still runs on" in refusal for refusal in refusals[:-1])
    record = read_record(storage, "frozen")
    files = contents(tmp_path / "runs/searches/frozen")
    frozen.send(signal.SIGCONT)
    done = frozen.wait()
    assert done.returncode == 1
    assert "was taken over by" in done.stderr
    assert contents(tmp_path / "runs/searches/frozen") == files
    assert read_record(storage, "frozen") == record
    checks.every_trial_is_there_once_and_ended(record)
    checks.mlflow_has_every_epoch_once_and_in_order(record)


def epochs(storage: Storage) -> int:
    """How many epochs the record has; none before there is one."""
    if "frozen" not in search_names(storage):
        return 0
    return sum(trial.epochs_done for trial in read_record(storage, "frozen").trials)


def contents(folder: Path) -> dict[str, bytes]:
    """What is kept of a search, but for what libraries write for themselves."""
    kept = [
        *folder.glob("*.json"),
        *folder.rglob("record/*"),
        *folder.rglob("trials/**/*"),
        *folder.rglob("owners/*"),
    ]
    return {str(path): path.read_bytes() for path in kept if path.is_file()}
