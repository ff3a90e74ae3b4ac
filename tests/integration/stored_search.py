"""A search that version 0.1.0 left behind, cut off in its third trial.

`stored` was written by that version on another machine; each trial has its newest checkpoint.
"""

import shutil
from pathlib import Path

from search.record.files import read_record
from search.record.record import SearchRecord
from search.record.storage import Storage
from tests.records import write_record

STORED = Path(__file__).parent / "stored"


def unpacked(folder: Path) -> SearchRecord:
    """The record of `stored-1`, with the search in a user's folder."""
    shutil.copytree(STORED, folder / "runs")
    storage = Storage(str(folder / "runs"))
    record = read_record(storage, "stored-1")
    return write_record(
        storage, record.model_copy(update={"tracking_uri": f"sqlite:///{folder}/mlflow.db"})
    )
