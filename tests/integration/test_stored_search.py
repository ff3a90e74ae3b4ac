"""A search of an earlier version opens, and gives its student; endurance resumes it."""

from pathlib import Path

import pytest

from kdcore.data.image_data import open_data
from kdcore.training.checkpoint import FILE_NAME
from kdcore.training.evaluation import default_device, evaluate_classes
from kdcore.training.loop import best_classifier, best_student
from search.errors import SearchError
from search.experiment.reading import read_experiment
from search.export.choice import candidates
from search.record.class_results import kept_of
from search.session.winner import measure_classes
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


def test_its_best_student_is_measured_by_class_on_the_held_out_images(tmp_path: Path) -> None:
    record = unpacked(tmp_path)
    assert record.by_class is None
    picked, storage = candidates(record)[0], str(tmp_path / "runs")
    found = measure_classes(picked, record.experiment.model_dump_json(), storage)
    assert (found.label, found.trial, found.seed) == ("1", 1, None)
    assert (found.checkpoint, found.epoch) == (picked.checkpoint, picked.best_epoch)
    right = sum((each.recall or 0.0) * each.support for each in found.classes)
    assert abs(right / found.images - picked.heldout_accuracy) <= max(0.001, 1.5 / found.images)
    data = open_data(record.experiment.data, tmp_path / "runs")
    assert found.images == len(data.heldout)
    (saved,) = (tmp_path / "runs" / picked.checkpoint).glob("*.pt")
    saved.rename(tmp_path / FILE_NAME)
    student = best_classifier(picked.student, data, best_student(tmp_path))
    evaluated = evaluate_classes(student.to(default_device()), data.heldout)
    assert (found.classes, found.mistakes) == kept_of(evaluated, data.class_names)
    with pytest.raises(SearchError, match="checkpoint of trial 1 is missing or damaged"):
        measure_classes(picked, record.experiment.model_dump_json(), storage)
