"""Searches with another sampler, another rule of early stopping and points of their user's, and one
for the front of accuracy against cost."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from search.record.files import read_record
from search.record.storage import Storage
from search.session.search import Search
from tests.integration.commands import succeeded

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 256},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 4, "learning_rate": {"low": 0.01, "high": 0.1}},
    "search": {
        "trials": 5,
        "sampler": "qmc",
        "points": "points.yaml",
        "stopping": "hyperband",
        "hyperband": {"reduction": 2},
        "concurrent_trials": 2,
    },
}


def test_a_search_runs_what_it_was_asked_for_and_explains_it(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    points = tmp_path / "points.yaml"
    points.write_text("- {method: kd, kd.temperature: 2}\n- {method: none, learning_rate: 0.1}\n")
    succeeded(tmp_path, "launch", "task.yaml")
    points.unlink()
    storage = Storage(str(tmp_path / "runs"))
    record = read_record(storage, "task-1")
    assert record.state == "finished"
    origins = [trial.proposal.by for trial in record.trials if trial.proposal]
    assert origins == ["control", "asked", "asked", "published", "qmc"]
    assert record.trials[1].point["kd.temperature"] == 2
    assert record.trials[2].point["training.learning_rate"] == 0.1
    text = Search(record, storage).explain(1)
    assert "It was asked for in search.points: points.yaml, line 1." in text
    assert "It is in bracket " in text


def test_a_search_for_the_front_is_within_its_constraints_and_says_how_to_pick(
    tmp_path: Path,
) -> None:
    search = {"trials": 6, "goal": "pareto", "cost": "latency_ms", "concurrent_trials": 1}
    constraints = {"parameters": 1e6, "latency_ms": 1e4}
    students = {"student": ["resnet8", "resnet14", "vgg8"], "constraints": constraints}
    (tmp_path / "task.yaml").write_text(
        yaml.safe_dump({**EXPERIMENT, **students, "search": search})
    )
    printed = succeeded(tmp_path, "launch", "task.yaml")
    assert "excluded vgg8: it has " in printed
    assert "kdsearch leaderboard task-1 --front" in printed
    storage = Storage(str(tmp_path / "runs"))
    record = read_record(storage, "task-1")
    assert record.state == "finished"
    assert record.experiment.students == ("resnet8", "resnet14")
    assert record.excluded.keys() == {"vgg8"}
    rule = record.experiment.search.rule
    assert rule is not None
    assert rule.among == "student"
    origins = [trial.proposal.by for trial in record.trials if trial.proposal]
    assert origins == ["control", "control", "published", *["tpe"] * 3]
    for number in (3, 4, 5):
        assert "Its student was chosen first" in Search(record, storage).explain(number)
    costs = dict(record.student_costs)
    table = succeeded(tmp_path, "leaderboard", "task-1", "--front")
    assert "the front of held-out accuracy against milliseconds for one image" in table
    picked = succeeded(tmp_path, "best", "task-1", "--max-params", "100000", "--no-register")
    assert "--front" not in picked
    succeeded(tmp_path, "resume", "task-1", "--more-trials", "2")
    resumed = read_record(storage, "task-1")
    assert resumed.student_costs == costs
    assert resumed.trials[:6] == record.trials
    assert [trial.state in ("finished", "stopped") for trial in resumed.trials] == [True] * 8
