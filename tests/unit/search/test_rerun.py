"""A row trained again: equal where it computes alike."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kdcore import DataConfig, Recipe, TeacherConfig, TrialConfig, distill
from search.record.storage import Storage, workspace_of
from search.session.rerun import RecordedTraining, rerun


@pytest.mark.parametrize("parts", [1, 2])
def test_batches_go_through_the_networks_as_they_did(parts: int, tmp_path: Path) -> None:
    config = TrialConfig(
        data=DataConfig(name="digits", heldout_fraction=0.2, train_images=128),
        teacher=TeacherConfig(backbone="resnet8", training=Recipe(epochs=1)),
        student="resnet8",
        objective=(),
        training=Recipe(epochs=2, acceleration="off"),
    )
    storage = Storage(str(tmp_path))
    reports = distill(config, workspace=workspace_of(storage), checkpoint_dir=None, parts=parts)
    row = RecordedTraining("none", config, tuple(asdict(report) for report in reports))
    assert rerun(row, storage, threads=1) == ""
    otherwise = tuple({**report, "parts": 3 - parts} for report in row.reports)
    assert rerun(replace(row, reports=otherwise), storage, threads=1).startswith("epoch 1: train_")
