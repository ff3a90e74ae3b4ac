"""Optuna's trials end in their true states."""

import math
from pathlib import Path

import pytest
from optuna.trial import TrialState

from kdcore import DataConfig
from kdcore.data import open_data
from kdcore.distillation import setting_of
from search.experiment import parse_experiment
from search.searcher import METRIC, TIME, TrueStateOptunaSearch
from search.space import derive_space

EPOCHS = 4


@pytest.fixture
def searcher(tmp_path: Path) -> TrueStateOptunaSearch:
    experiment = parse_experiment(
        {
            "name": "task",
            "data": {"name": "digits"},
            "teacher": {"backbone": "resnet20", "training": {"epochs": 2}},
            "student": "resnet8",
            "objective": [["none", "kd", "fitnet"]],
            "training": {"epochs": EPOCHS},
            "search": {"trials": 8},
        },
        "",
    )
    data = open_data(DataConfig(name="digits"), tmp_path)
    space = derive_space(experiment, {"resnet8": setting_of("resnet8", "resnet20", data)}, "")
    return TrueStateOptunaSearch(space, trials=8, parallel=2, epochs=EPOCHS, seed=0)


def report(accuracy: float, epoch: int) -> dict[str, float]:
    return {METRIC: accuracy, TIME: epoch, "training_iteration": epoch}


def test_finished_stopped_failed_and_not_finite_trials_get_their_states(
    searcher: TrueStateOptunaSearch,
) -> None:
    for trial_id in "abcde":
        assert searcher.suggest(trial_id) is not None
    for epoch in range(1, EPOCHS):
        searcher.on_trial_result("a", report(0.1 * epoch, epoch))
    searcher.on_trial_complete("a", report(0.9, EPOCHS))
    searcher.on_trial_result("b", report(0.3, 1))
    searcher.on_trial_complete("b", report(0.4, 2))
    searcher.on_trial_complete("c", error=True)
    searcher.on_trial_complete("d", report(math.nan, 2))
    searcher.on_trial_complete("e", None)
    trials = searcher.study.trials
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert trials[0].value == 0.9
    assert trials[0].intermediate_values == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.9})
    assert trials[1].intermediate_values == {1: 0.3, 2: 0.4}
    assert searcher.study.best_trial.number == 0


def test_a_trial_ends_once(searcher: TrueStateOptunaSearch) -> None:
    searcher.suggest("a")
    searcher.on_trial_complete("a", report(0.5, EPOCHS))
    searcher.on_trial_complete("a", error=True)
    assert searcher.study.trials[0].state is TrialState.COMPLETE


def test_the_sampler_goes_on_after_a_control_without_settings(
    searcher: TrueStateOptunaSearch,
) -> None:
    for number in range(30):
        point = searcher.suggest(str(number))
        assert point is not None
        assert ("control" in point) == (number == 0)
        searcher.on_trial_complete(str(number), report(0.5 + number / 100, EPOCHS))
    assert all(trial.state is TrialState.COMPLETE for trial in searcher.study.trials)
