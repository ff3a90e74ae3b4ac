"""A search whose driver is killed again and again: nothing is lost, nothing is there twice."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.record.files import read_record, search_names
from search.record.storage import Storage
from tests.integration import checks
from tests.integration.commands import Command, succeeded

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


def epochs_in(folder: Path) -> int:
    """How many epochs the record has, whatever state it is in."""
    storage = Storage(str(folder / "runs"))
    if "killed" not in search_names(storage):
        return 0
    record = read_record(storage, "killed")
    return sum(trial.epochs_done for trial in record.trials)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a search that was killed at random moments and has come to its end."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    moments = random.Random(0)
    arguments = ["launch", "task.yaml", "--name", "killed"]
    for _ in range(KILLS):
        search = Command(folder, *arguments)
        arguments = ["resume", "killed"]
        before, deadline = epochs_in(folder), time.monotonic() + 300
        while epochs_in(folder) == before and search.is_running():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 3))
        search.send(signal.SIGKILL)  # nothing where it has ended by itself
        search.wait()
        if read_record(Storage(str(folder / "runs")), "killed").state == "finished":
            arguments = ["resume", "killed", "--more-trials", "1"]
    succeeded(folder, "resume", "killed")
    return folder


def test_nothing_is_lost_and_nothing_there_twice(folder: Path) -> None:
    record = read_record(Storage(str(folder / "runs")), "killed")
    checks.nothing_was_lost(record, folder / "runs")
