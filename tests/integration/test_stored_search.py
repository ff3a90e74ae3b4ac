"""A search that version 0.1.0 left behind, cut off in its third trial, opens, resumes and shows.

`stored` was written by that version on another machine; each trial has its newest checkpoint.
"""

import shutil
from pathlib import Path

import search
from search.experiment.reading import read_experiment
from search.record.files import read_record, write_record
from search.record.storage import Storage
from tests.integration.commands import succeeded

STORED = Path(__file__).parent / "stored"


def test_a_search_of_an_earlier_version_opens_resumes_and_shows(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "runs")
    storage = Storage(str(tmp_path / "runs"))
    record = read_record(storage, "stored-1")
    assert [(trial.state, trial.epochs_done) for trial in record.trials] == [
        ("finished", 60),
        ("finished", 60),
        ("interrupted", 15),
    ]
    assert record.experiment == read_experiment(STORED / "searches/stored-1/experiment.yaml")
    write_record(
        storage, record.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"})
    )

    table = succeeded(tmp_path, "leaderboard", "stored-1")
    assert "kd(weight=0.9, temperature=4, standardize=False)" in table
    assert "99.31" in table
    assert "trial 1, exported to runs/searches/stored-1/best" in succeeded(
        tmp_path, "best", "stored-1", "--no-register"
    )

    printed = succeeded(tmp_path, "resume", "stored-1")
    assert "teacher resnet8: found" in printed
    resumed = search.open_search("stored-1", storage=str(tmp_path / "runs")).record
    assert [trial.state for trial in resumed.trials] == ["finished"] * 4
    assert resumed.trials[:2] == record.trials[:2]
    went_on = resumed.trials[2]
    assert went_on.accuracies[:15] == record.trials[2].accuracies
    assert went_on.point == record.trials[2].point
    assert went_on.epochs_done == 60
