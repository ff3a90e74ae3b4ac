"""A row trained again: equal where it computes alike."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore import DataConfig, EpochReport, Recipe, TeacherConfig, TrialConfig, distill
from kdcore.execution.execution import Execution
from search.record.networks import Executions
from search.record.record import SearchRecord, TrialRecord
from search.record.storage import Storage, workspace_of
from search.session.retraining.rerun import RecordedTraining, recorded_training, rerun
from tests.synthetic import finished_search


def test_precision_and_layout_are_those_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def noted(*arguments: Any, **settings: Any) -> Iterator[EpochReport]:
        given.update(settings)
        return iter(())

    monkeypatch.setattr("search.session.retraining.rerun.distill_together", noted)
    monkeypatch.setattr(
        "search.session.retraining.rerun.islice", lambda reports, count: [report] * count
    )
    report = EpochReport(**dict.fromkeys(EpochReport.__annotations__, 1))  # type: ignore[arg-type]
    trial = TrialRecord(
        number=0,
        student="resnet8",
        point={"objective.1": "kd"},
        objective="kd",
        state="finished",
        epochs=4,
        accuracies=(1.0,),
    )
    student, teacher = Execution("bfloat16"), Execution(channels_last=True)
    executions = Executions(students={"resnet8": student}, teacher=teacher)
    for decided in (executions, None):
        record = finished_search([trial], executions=decided)
        record = SearchRecord.model_validate_json(record.model_dump_json())
        storage = Storage(str(tmp_path))
        assert rerun(recorded_training(record, storage, "0"), storage, threads=1) == ""
        assert given["execution"] == (student if decided else None)
        assert given["teacher_execution"] == (teacher if decided else None)
        assert given["device"] == torch.device("cpu")


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
