"""A reproduction that is killed, and goes on where it was."""

import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import parquet

from search.record.files import read_record
from search.record.looks import looks_at
from search.record.record import SearchRecord
from search.record.storage import Storage
from tests.integration.commands import Command, kdsearch
from tests.own_code import EXAMPLES

pytestmark = pytest.mark.integration

PAIR: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0, "train_images": 512},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 2, "acceleration": "off"}},
    "student": "resnet8",
    "training": {"epochs": 2, "acceleration": "off"},
    "seeds": 2,
    "plugins": ["cosine_logits.py"],
    "rows": {"kd": {"kd": {}}, "own-kd": {"cosine_logits": {}, "kd": {}}},
}
FIGURES = {
    "tables": [
        {
            "source": "a paper",
            "epoch": "last",
            "seeds": 3,
            "pairs": ["small"],
            "teacher": [97.0],
            "student": [95.0],
            "rows": {"kd": [[96.0, 0.3]]},
        }
    ]
}
# Kills its own process as soon as three runs are in the record.
START = """
import os, signal
from search.session.retraining.retraining import Retraining

write = Retraining._write

def write_and_end(self):
    write(self)
    if sum(len(each.runs) for each in self._search.head.confirmed) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Retraining._write = write_and_end
from search.cli.app import main
main()
"""
WORDS = ("reproduce", "pairs/small.yaml", "--name", "mine")


def recorded(folder: Path) -> SearchRecord:
    return read_record(Storage(str(folder / "runs")), "mine-small")


def runs_of(record: SearchRecord) -> dict[tuple[str, int], float | None]:
    return {
        (row.label, run.seed): run.test_accuracy for row in record.confirmed for run in row.runs
    }


def written(folder: Path) -> dict[str, int]:
    """When the checkpoints of the runs were written."""
    found = folder.glob("runs/searches/mine-small/confirmation/*/checkpoints.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def test_a_reproduction_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    shutil.copy(EXAMPLES / "cosine_logits.py", tmp_path / "pairs")
    (tmp_path / "pairs/small.yaml").write_text(yaml.safe_dump(PAIR, sort_keys=False))
    (tmp_path / "pairs/figures.yaml").write_text(yaml.safe_dump(FIGURES))
    (tmp_path / "start.py").write_text(START)

    killed = Command(tmp_path, "start.py", *WORDS).wait()
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert "the TEST split, which everywhere else is not looked at" in killed.stdout
    first, before = recorded(tmp_path), written(tmp_path)
    assert first.state == "interrupted"
    assert len(runs_of(first)) == 3
    files = tmp_path / "runs/reproductions/mine"
    assert "small: resnet14 teaches resnet8" in (files / "reproduction.md").read_text()

    done = kdsearch(tmp_path, *WORDS)
    assert done.returncode == 0, done.stdout + done.stderr
    last = recorded(tmp_path)
    assert last.state == "finished"
    assert sorted(runs_of(last)) == [
        (row, seed) for row in ("kd", "none", "own-kd") for seed in (0, 1)
    ]
    assert runs_of(first).items() <= runs_of(last).items()
    ended = {f"{row}-seed{seed}" for row, seed in runs_of(first)}
    after = written(tmp_path)
    assert {name: before[name] for name in ended} == {name: after[name] for name in ended}

    text = (files / "reproduction.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [(row[0], row[5]) for row in rows[2:]] == [
        ("| teacher resnet14", ""),
        ("| student alone", "2"),
        ("| kd", "2"),
        ("| own-kd", "2"),
    ]
    assert {len(row) for row in rows} == {len(rows[0])}
    values = parquet.read_table(files / "reproduction.parquet").to_pylist()
    for value in values[1:]:
        of_row = next(row for row in last.confirmed if row.label == value["row"])
        assert value["best_accuracies"] == list(of_row.test_accuracies.values())
        assert value["last_accuracies"] == [run.accuracies[-1] for run in of_row.runs]
        assert value["images_per_second"] > 0
    assert (files / "differences.png").read_bytes().startswith(b"\x89PNG")

    looks = looks_at(Storage(str(tmp_path / "runs")), last.experiment.data)
    assert [(look.by, len(look.students)) for look in looks] == [
        ("reproduce", 6),
        ("reproduce", 3),
    ]
    with sqlite3.connect(tmp_path / "runs/mlflow.db") as store:
        query = "SELECT value, COUNT(*) FROM tags WHERE key = 'kdsearch.reproduces' GROUP BY value"
        assert store.execute(query).fetchall() == [("small", 6)]

    again = kdsearch(tmp_path, *WORDS)
    assert again.returncode == 0, again.stderr
    assert again.stdout in done.stdout, "the same tables, and nothing trained"
    other = kdsearch(tmp_path, *WORDS, "--epochs", "3")
    assert other.returncode == 2
    assert other.stderr.startswith("--name: 'mine-small' was begun with training.epochs 2, and now")
