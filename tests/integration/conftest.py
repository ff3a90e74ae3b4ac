"""What integration tests share: a finished search, and an environment without this user's own
cluster and servers."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.record import SearchRecord, read_record
from search.storage import Storage

for _name in [*os.environ]:
    if _name.startswith(("RAY_", "KDSEARCH_")) or _name == "MLFLOW_TRACKING_URI":
        del os.environ[_name]

# kd always fails here: such a weight leaves the range of float32. It is confirmed all the same.
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 3, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd", "at", "rkd"]],
    "training": {"epochs": 4, "learning_rate": 0.1},
    "search": {"trials": 8, "asha": {"grace_epochs": 1, "reduction": 2}},
    "narrow": {"kd.weight": [1e39, 2e39]},
    "confirm": {"top": 1, "seeds": 2},
    "licences": {"student": "Apache-2.0"},
}


@dataclass(frozen=True)
class Finished:
    """A search that has come to its end.

    Args:
        folder: its user's, with the experiment's file.
        output: what the launch printed.
        record: of the search, as the launch left it.
    """

    folder: Path
    output: str
    record: SearchRecord

    @property
    def storage(self) -> Storage:
        return Storage(str(self.folder / "runs"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The search `task-1`, for all who only look at it, or add to its folder."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    launched = subprocess.run(
        [sys.executable, "-m", "search", "launch", "task.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert launched.stderr == ""
    record = read_record(Storage(str(folder / "runs")), "task-1")
    return Finished(folder, launched.stdout, record)
