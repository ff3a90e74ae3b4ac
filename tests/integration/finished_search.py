"""The finished search that tests share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.record.files import read_record
from search.record.record import SearchRecord
from search.record.storage import Storage

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
    """

    folder: Path
    output: str

    @property
    def storage(self) -> Storage:
        return Storage(str(self.folder / "runs"))

    @property
    def record(self) -> SearchRecord:
        return read_record(self.storage, "task-1")
