"""What holds of every search at its end, whatever has happened to it."""

from collections import Counter
from pathlib import Path

import cloudpickle
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

import kdcore
from search.experiment.space.trial_config import trial_config
from search.record.record import SearchRecord

_OPTUNA = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
_MLFLOW = {"finished": "FINISHED", "stopped": "KILLED"}


def nothing_was_lost(record: SearchRecord, runs: Path, *, teachers: tuple[int, ...] = (1,)) -> None:
    """All of them, for a search in a folder for runs that may have trained so many teachers."""
    every_trial_is_there_once_and_ended(record)
    reports_are_those_of_undisturbed_trials(record, runs)
    optuna_has_each_trial_once_in_its_true_state(record, runs)
    mlflow_has_every_epoch_once_and_in_order(record, teachers=teachers)


def every_trial_is_there_once_and_ended(record: SearchRecord) -> None:
    assert record.state == "finished"
    assert [each.number for each in record.trials] == list(range(record.experiment.search.trials))
    assert {trial.state for trial in record.trials} <= _OPTUNA.keys()
    for trial in record.trials:
        assert (trial.epochs_done == trial.epochs) == (trial.state == "finished")
        assert len(trial.accuracies) == trial.epochs_done
    assert record.trials[0].state == "finished"
    points = [trial.point for trial in record.trials]
    assert all(point not in points[:index] for index, point in enumerate(points))


def reports_are_those_of_undisturbed_trials(record: SearchRecord, workspace: Path) -> None:
    for trial in record.trials:
        config = trial_config(record.experiment, trial.point)
        reports = kdcore.distill(config, workspace=workspace)
        pairs = zip(trial.accuracies, reports, strict=False)
        assert all(accuracy == report.heldout_accuracy for accuracy, report in pairs)


def optuna_has_each_trial_once_in_its_true_state(record: SearchRecord, runs: Path) -> None:
    tune = runs / "searches" / record.name / "tune" / record.name
    states = tune.glob("searcher-state-*.pkl")
    newest = max(states, key=lambda path: path.name)  # with the time of its session
    trials = cloudpickle.loads(newest.read_bytes()).trials
    # In the order in which they were asked for, which that of their numbers need not be.
    expected = [_OPTUNA[trial.state] for trial in record.trials]
    assert Counter(trial.state for trial in trials) == Counter(expected)
    for known in trials:
        assert any(
            known.state == _OPTUNA[trial.state]
            and known.params.items() <= trial.point.items()
            and known.intermediate_values.keys() <= {trial.epochs_done}  # the last says it all
            for trial in record.trials
        )


def mlflow_has_every_epoch_once_and_in_order(
    record: SearchRecord, *, teachers: tuple[int, ...] = (1,)
) -> None:
    client = MlflowClient(record.tracking_uri)
    assert record.mlflow_experiment_id is not None
    runs = client.search_runs([record.mlflow_experiment_id])
    by_role = {
        role: [run for run in runs if run.data.tags["kdsearch.role"] == role]
        for role in ("search", "teacher", "trial")
    }
    assert len(by_role["search"]) == 1
    assert len(by_role["teacher"]) in teachers
    assert len(by_role["trial"]) == len(record.trials)
    by_number = {int(run.data.tags["kdsearch.trial"]): run for run in by_role["trial"]}
    for trial in record.trials:
        run = by_number[trial.number]
        assert run.info.status == _MLFLOW[trial.state]
        history = client.get_metric_history(run.info.run_id, "heldout_accuracy")
        logged = sorted(history, key=lambda entry: entry.step)
        assert [entry.step for entry in logged] == list(range(1, trial.epochs_done + 1))
        # MLflow's are rounded.
        values = [entry.value for entry in logged]
        assert values == pytest.approx(trial.accuracies, abs=1e-4)
        times = [entry.timestamp for entry in logged]
        assert times == sorted(times)
    (search,) = by_role["search"]
    assert search.info.status == "FINISHED"
    assert search.info.run_id == record.mlflow_run_id
