"""Optuna's trials end in their true states."""

import math
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from kdcore import DataConfig
from kdcore.data.image_data import open_data
from kdcore.distillation.distill import network_pair
from search.experiment.reading import parse_experiment
from search.experiment.space.derivation import derive_space
from search.experiment.space.point import NUMBER
from search.experiment.space.space import Space
from search.record.record import METRIC, TIME, TrialRecord
from search.session.sampler import OptunaSampler

EPOCHS = 4


@pytest.fixture
def space(tmp_path: Path) -> Space:
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
    return derive_space(experiment, {"resnet8": network_pair("resnet8", "resnet20", data)}, "")


@pytest.fixture
def searcher(space: Space) -> OptunaSampler:
    return OptunaSampler(space, trials=8, parallel=2, epochs=EPOCHS, seed=0)


def recorded(
    number: int, point: dict[str, Any], state: Any, accuracies: list[float]
) -> TrialRecord:
    return TrialRecord(
        number=number,
        student="resnet8",
        point={key: value for key, value in point.items() if key != NUMBER},
        objective="",
        state=state,
        epochs_done=len(accuracies),
        epochs=EPOCHS,
        accuracies=tuple(accuracies),
        heldout_accuracy=max(accuracies, default=None),
    )


def report(accuracy: float, epoch: int) -> dict[str, float]:
    return {METRIC: accuracy, TIME: epoch, "training_iteration": epoch}


def test_finished_stopped_failed_and_not_finite_trials_get_their_states(
    searcher: OptunaSampler,
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


def test_a_trial_ends_once(searcher: OptunaSampler) -> None:
    searcher.suggest("a")
    searcher.on_trial_complete("a", report(0.5, EPOCHS))
    searcher.on_trial_complete("a", error=True)
    assert searcher.study.trials[0].state is TrialState.COMPLETE


def test_the_sampler_goes_on_after_a_control_without_settings(
    searcher: OptunaSampler,
) -> None:
    for number in range(30):
        point = searcher.suggest(str(number))
        assert point is not None
        assert ("control" in point) == (number == 0)
        searcher.on_trial_complete(str(number), report(0.5 + number / 100, EPOCHS))
    assert all(trial.state is TrialState.COMPLETE for trial in searcher.study.trials)


def test_a_study_is_built_from_the_record_and_what_was_cut_off_comes_first(space: Space) -> None:
    first = OptunaSampler(space, trials=8, parallel=2, epochs=EPOCHS, seed=0)
    points = [first.suggest(str(number)) for number in range(6)]
    trials = [
        recorded(0, points[0], "finished", [0.1, 0.4, 0.3, 0.5]),
        recorded(1, points[1], "interrupted", [0.2, 0.3]),
        recorded(2, points[2], "failed", []),
        recorded(3, points[3], "stopped", [0.1]),
        # Number 4 was proposed, but its process died before it began.
        recorded(5, points[5], "running", []),
    ]
    second = OptunaSampler(space, trials=8, parallel=2, epochs=EPOCHS, seed=0, recorded=trials)
    assert [trial.state for trial in second.study.trials] == [
        TrialState.COMPLETE,
        TrialState.WAITING,
        TrialState.FAIL,
        TrialState.PRUNED,
        TrialState.WAITING,
        TrialState.WAITING,
    ]
    assert second.study.trials[0].value == 0.5
    assert second.study.trials[0].intermediate_values == {1: 0.1, 2: 0.4, 3: 0.4, 4: 0.5}
    assert second.suggest("a") == points[1]
    assert second.suggest("b")[NUMBER] == 4
    assert second.suggest("c") == points[5]
    assert second.suggest("d")[NUMBER] == 6
    second.on_trial_result("a", report(0.3, 2))
    second.on_trial_complete("a", report(0.6, EPOCHS))
    assert second.study.trials[1].intermediate_values == {1: 0.2, 2: 0.3, 4: 0.6}


def test_a_later_session_does_not_draw_the_first_ones_points_again(space: Space) -> None:
    first = OptunaSampler(space, trials=8, parallel=2, epochs=EPOCHS, seed=0)
    points = [first.suggest(str(number)) for number in range(6)]
    trials = [recorded(number, point, "stopped", [0.1]) for number, point in enumerate(points)]
    second = OptunaSampler(space, trials=8, parallel=2, epochs=EPOCHS, seed=0, recorded=trials)
    assert {**second.suggest("a"), NUMBER: 0} not in [{**point, NUMBER: 0} for point in points]


def test_earlier_searches_trials_are_adopted_where_they_fit(space: Space) -> None:
    first = OptunaSampler(space, trials=8, parallel=2, epochs=EPOCHS, seed=0)
    points = [first.suggest(str(number)) for number in range(4)]
    strange = {"objective.1": "kd", "kd.weight": 1.0, "kd.unheard_of": 2.0}
    out_of_range = {**points[1], "kd.temperature": 1e6}
    earlier = [
        recorded(0, points[0], "finished", [0.1] * EPOCHS),
        recorded(1, points[1], "finished", [0.2] * (EPOCHS + 3)),
        recorded(2, points[2], "stopped", [0.3]),
        recorded(3, strange, "finished", [0.4] * EPOCHS),
        recorded(4, out_of_range, "finished", [0.4] * EPOCHS),
        recorded(5, points[3], "failed", []),
    ]
    second = OptunaSampler(space, trials=8, parallel=2, epochs=EPOCHS, seed=0, earlier=earlier)
    assert second.adopted == 3
    states = [trial.state for trial in second.study.trials[:3]]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
    numbers = [second.suggest(str(number))[NUMBER] for number in range(8)]
    assert numbers == list(range(8))
    assert [second.suggest(f"again {number}")[NUMBER] for number in range(2)] == [8, 9]
