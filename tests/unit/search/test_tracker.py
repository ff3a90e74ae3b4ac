"""What MLflow gets of a search, also from a queue that an earlier version left."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from kdcore.data.image_data import ImageData
from kdcore.training.report import EpochReport
from search.errors import StorageError, TrackingError
from search.record.record import ConfirmationRun
from search.tracking.mlflow_writer import save_runs_table
from search.tracking.tracker import Tracker
from tests.synthetic import made_up_search


def test_each_run_of_a_confirmation_is_a_child_with_its_curve_and_true_state(
    digits: ImageData, tmp_path: Path
) -> None:
    record = made_up_search(3).model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/m.db"})
    reports = [
        EpochReport(
            epoch=epoch,
            epochs=2,
            train_loss=1.0,
            train_terms={"cross_entropy": 1.0},
            train_accuracy=0.5,
            heldout_accuracy=0.5 + epoch / 10,
            heldout_loss=1.0,
            best_heldout_accuracy=0.5 + epoch / 10,
            best_epoch=epoch,
            learning_rate=0.1,
            epoch_seconds=1.0,
        )
        for epoch in (1, 2)
    ]
    ended = ConfirmationRun(seed=1, heldout_accuracy=0.7, test_accuracy=0.66)
    failed = ConfirmationRun(seed=2, reason="not finite")
    ids = {}
    for _ in range(2):  # a second confirmation finds the runs of the first
        tracker = Tracker(
            record.tracking_uri, tmp_path / "artifacts", tmp_path / "x.jsonl", record, digits
        )
        tracker.open()
        tracker.start_search(record, "name: made-up\n", {})
        tracker.log_confirmation("1-seed1", "kd", 1, {"seed": "1"}, reports, ended)
        tracker.log_confirmation("1-seed2", "kd", 1, {"seed": "2"}, [], failed)
        assert tracker.close() == 0
        ids = tracker.ids
    client = MlflowClient(record.tracking_uri)
    experiment = ids["mlflow_experiment_id"]
    runs = client.search_runs([experiment], "tags.`kdsearch.role` = 'confirmation'")
    known = {run.data.tags["kdsearch.confirmation"]: run for run in runs}
    assert sorted(known) == ["1-seed1", "1-seed2"]
    assert len(runs) == 2
    good, bad = known["1-seed1"], known["1-seed2"]
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert good.data.tags["mlflow.parentRunId"] == ids["mlflow_run_id"]
    assert good.data.metrics["test_accuracy"] == 0.66
    history = client.get_metric_history(good.info.run_id, "heldout_accuracy")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.6), (2, 0.7)]
    assert bad.data.tags["kdsearch.reason"] == "not finite"


def test_a_queue_of_an_earlier_version_is_delivered(digits: ImageData, tmp_path: Path) -> None:
    record = made_up_search(3).model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/m.db"})
    params = {"trials": "3"}
    dataset = {"name": "digits", "digest": "d", "source_type": "local", "source": "{}"}
    start = {"params": params, "experiment_yaml": "name: x\n", "dataset": dataset}
    trial = {"number": 1, "name": "001 kd", "params": {}, "costs": {}, "dataset": dataset}
    report: dict[str, Any] = dict.fromkeys(
        ("heldout_accuracy", "best_heldout_accuracy", "train_loss", "gain"), 0.5
    )
    report |= {"epoch": 1, "epochs": 2, "train_terms": {"kd": 1.0}, "teacher": "", "parts": 1}
    report["teacher_seconds_saved"] = 0.0
    end = {"number": 1, "tags": {"state": "finished"}, "status": "FINISHED", "student": {}}
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("start_search", start),
        ("view", {"key": "mlflow.sharedViewState.made-up-1", "value": "{}"}),
        ("teacher", {"backbone": "resnet20", "reports": [], "metrics": {"heldout_accuracy": 0.9}}),
        ("start_trial", trial),
        ("epoch", {"number": 1, "report": report}),
        ("gains", {"gains": [[1, 1, {"gain": 0.25}]]}),
        ("end_trial", end),
        ("cost", {"costs": {"hours": 1.0}, "step": 1}),
        ("report", {"folder": str(tmp_path / "gone")}),
        ("end_search", {"metrics": {}, "tags": {"state": "finished"}, "status": "FINISHED"}),
    )
    queue = tmp_path / "mlflow.jsonl"
    with queue.open("w") as file:
        for number, (call, arguments) in enumerate(calls, start=1):
            entry = {"entry": number, "call": call, "time": 1000 * number, "arguments": arguments}
            file.write(json.dumps(entry) + "\n")
    tracker = Tracker(record.tracking_uri, tmp_path / "artifacts", queue, record, digits)
    tracker.open()
    assert tracker.close() == 0
    client = MlflowClient(record.tracking_uri)
    experiment = client.get_experiment(tracker.ids["mlflow_experiment_id"])
    assert experiment.tags["mlflow.sharedViewState.made-up-1"] == "{}"
    search = client.get_run(tracker.ids["mlflow_run_id"])
    assert search.data.metrics == {"teacher_heldout_accuracy": 0.9, "hours": 1.0}
    (run,) = client.search_runs([experiment.experiment_id], "tags.`kdsearch.role` = 'trial'")
    assert run.data.metrics["gain"] == 0.25
    assert run.data.metrics["epochs_done"] == 1
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "finished")


def test_nothing_is_delivered_before_the_tracker_is_opened(
    digits: ImageData, tmp_path: Path
) -> None:
    record = made_up_search(3)
    queue = tmp_path / "mlflow.jsonl"
    tracker = Tracker("http://127.0.0.1:9", tmp_path, queue, record, digits)
    tracker.log_cost(record)
    assert tracker.close() == 1
    assert json.loads(queue.read_text())["call"] == "cost"


def test_a_server_that_is_away_and_a_folder_that_is_read_only_are_told(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = made_up_search(3).model_copy(update={"mlflow_experiment_id": "1"})
    with pytest.raises(TrackingError, match=r"^MLflow at http://127\.0\.0\.1:9: "):
        save_runs_table("http://127.0.0.1:9", record)
    (tmp_path / "file").write_text("")
    queue = tmp_path / "file" / "mlflow.jsonl"
    with pytest.raises(StorageError, match=r"cannot write .*mlflow\.jsonl"):
        Tracker("http://127.0.0.1:9", tmp_path, queue, record, digits)
