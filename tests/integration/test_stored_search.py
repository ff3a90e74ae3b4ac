"""A search of an earlier version opens, and gives its student; endurance resumes it."""

from pathlib import Path

from search.experiment.reading import read_experiment
from tests.integration.commands import succeeded
from tests.integration.stored_search import STORED, unpacked


def test_a_search_of_an_earlier_version_opens_and_gives_its_student(tmp_path: Path) -> None:
    record = unpacked(tmp_path)
    assert [(trial.state, trial.epochs_done) for trial in record.trials] == [
        ("finished", 60),
        ("finished", 60),
        ("interrupted", 15),
    ]
    assert record.experiment == read_experiment(STORED / "searches/stored-1/experiment.yaml")
    table = succeeded(tmp_path, "leaderboard", "stored-1")
    assert "kd(weight=0.9, temperature=4, standardize=False)" in table
    assert "99.31" in table
    assert "trial 1, exported to runs/searches/stored-1/best" in succeeded(
        tmp_path, "best", "stored-1", "--no-register"
    )
