"""What MLflow gets of a confirmation: a child run for each seed, once."""

from pathlib import Path

from mlflow import MlflowClient

from kdcore.data.image_data import ImageData
from kdcore.training.report import EpochReport
from search.record.record import ConfirmationRun
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
