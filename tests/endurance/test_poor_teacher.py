"""A search whose teacher must lead and does not: it ends once its control shows that."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from search.record.files import read_record
from search.record.storage import Storage
from tests.integration.commands import kdsearch, succeeded

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 1, "learning_rate": 1e-4}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 4, "learning_rate": 0.1},
    "search": {"trials": 50, "concurrent_trials": 1, "teacher_must_lead": True},
    "confirm": {"top": 1, "seeds": 2},
}
PASSED = "the student resnet8 alone has passed its teacher resnet14"


def test_a_search_whose_teacher_must_lead_ends_when_a_control_has_passed_it(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    launched = kdsearch(tmp_path, "launch", "task.yaml")
    assert launched.returncode == 1, launched.stdout + launched.stderr
    assert launched.stderr == ""
    assert f"caution: {PASSED}" in launched.stdout
    assert "more epochs (teacher.training.epochs is 1)" in launched.stdout
    assert "The search ended early, as search.teacher_must_lead is true" in launched.stdout
    assert "exported to" not in launched.stdout
    record = read_record(Storage(str(tmp_path / "runs")), "task-1")
    assert record.ended.startswith(PASSED)
    assert record.heldout_images == 288
    assert record.trials[0].is_control
    assert record.trials[0].state == "finished"
    assert len(record.trials) < 10, "the control was the first of 50"
    assert record.confirmed == (), "a confirmation would spend more of the budget"

    resumed = kdsearch(tmp_path, "resume", "task-1")
    assert resumed.returncode == 2
    assert PASSED in resumed.stderr
    assert "--set search.teacher_must_lead=false" in resumed.stderr
    # The teacher is ready by now, and a control known.
    assert f"caution: {PASSED}" in succeeded(tmp_path, "check", "task.yaml")
    assert f"Caution: {PASSED}" in succeeded(tmp_path, "leaderboard", "task-1")
    best = succeeded(tmp_path, "best", "task-1", "--no-register")
    assert "best student: trial 0, the control" in best
    card = (tmp_path / "runs/searches/task-1/best/README.md").read_text()
    assert card.startswith("# resnet8, trained without a teacher")
