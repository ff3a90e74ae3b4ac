"""Optuna's trials end in their true states."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

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
    return derive_space(
        experiment, {("resnet8", "resnet20"): network_pair("resnet8", "resnet20", data)}, ""
    )


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
    assert trials[0].intermediate_values == {4: 0.9}
    assert trials[1].intermediate_values == {2: 0.4}
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
        TrialState.PRUNED,
    ]
    assert second.study.trials[0].value == 0.5
    assert second.study.trials[1].intermediate_values == {1: 0.1}
    assert second.suggest("a") == points[1]
    assert second.suggest("b")[NUMBER] == 4
    assert second.suggest("c") == points[5]
    assert second.suggest("d")[NUMBER] == 6
    second.on_trial_result("a", report(0.3, 2))
    second.on_trial_complete("a", report(0.6, EPOCHS))
    assert second.study.trials[2].state is TrialState.COMPLETE
    assert second.study.trials[2].value == 0.6


def test_a_trial_with_epochs_on_top_is_complete_after_its_budget(space: Space) -> None:
    ahead = 3
    reports = {"a": EPOCHS, "b": ahead + 1, "c": ahead + EPOCHS}
    first = OptunaSampler(
        space, trials=8, parallel=2, epochs=EPOCHS, seed=0, on_top=lambda point: ahead
    )
    points = [first.suggest(name) for name in reports]
    for name, epoch in reports.items():
        first.on_trial_complete(name, report(0.5, epoch))
    trials = [
        recorded(number, point, "stopped", [0.5] * epoch)
        for number, (point, epoch) in enumerate(zip(points, reports.values(), strict=True))
    ]
    second = OptunaSampler(
        space,
        trials=8,
        parallel=2,
        epochs=EPOCHS,
        seed=0,
        recorded=trials,
        on_top=lambda point: ahead,
    )
    for searcher in (first, second):
        pruned, cut, complete = searcher.study.trials
        assert (pruned.state, cut.state) == (TrialState.PRUNED, TrialState.PRUNED)
        assert (pruned.last_step, cut.last_step) == (EPOCHS - ahead, 1)
        assert (complete.state, complete.last_step) == (TrialState.COMPLETE, EPOCHS)


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


def ended(searcher: OptunaSampler) -> list[FrozenTrial]:
    """What the study learns from."""
    return searcher.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def test_a_long_search_learns_from_its_best_trials_and_a_sample_of_the_others(space: Space) -> None:
    searcher = OptunaSampler(space, trials=99, parallel=2, epochs=EPOCHS, seed=0, learns_from=20)
    chance = random.Random(0)
    values: list[float] = []
    sizes = []
    for number in range(99):
        assert searcher.suggest(str(number))[NUMBER] == number
        values.append(chance.random())
        searcher.on_trial_complete(str(number), report(values[-1], EPOCHS if number % 3 else 1))
        sizes.append(len(ended(searcher)))
        whole = [value for number, value in enumerate(values) if number % 3]
        kept = [trial.value for trial in ended(searcher)]
        assert set(kept) >= set(sorted(whole)[-4:])
        assert kept == sorted(kept, key=values.index), "the older come first"
    assert max(sizes) == 21
    assert min(sizes[21:]) == 17
    assert set(kept) & set(values[:20]) - set(sorted(values)[-20:]), "a sample of all"


def test_what_ran_long_before_it_was_cut_is_kept_where_nothing_was_finished(space: Space) -> None:
    first = OptunaSampler(space, trials=8, parallel=2, epochs=EPOCHS, seed=0)
    point = [first.suggest(str(number)) for number in range(3)][1]
    curves = [[0.9], [0.1, 0.2, 0.3], [0.1, 0.2, 0.4], [0.1, 0.1]] + [[0.8]] * 40
    trials = [recorded(number, point, "stopped", curve) for number, curve in enumerate(curves)]
    for seed in range(5):
        searcher = OptunaSampler(
            space, trials=99, parallel=2, epochs=EPOCHS, seed=seed, recorded=trials, learns_from=10
        )
        assert len(ended(searcher)) == 8
        assert {trial.value for trial in ended(searcher)} >= {0.3, 0.4}


def test_trials_that_run_while_the_study_is_built_anew_end_in_the_new_one(space: Space) -> None:
    searcher = OptunaSampler(space, trials=99, parallel=2, epochs=EPOCHS, seed=0, learns_from=8)
    control, *points = [searcher.suggest(name) for name in ("control", "poor", "lost", "good")]
    old = searcher.study
    for number in range(9):
        searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), report(0.5, 1))
    assert searcher.study is old
    searcher.suggest("next")
    assert searcher.study is not old
    running = searcher.study.get_trials(states=(TrialState.RUNNING,))
    assert [trial.params for trial in running[1:4]] == [
        {key: value for key, value in point.items() if key != NUMBER} for point in points
    ]
    searcher.on_trial_result("good", report(0.7, 2))
    searcher.on_trial_complete("good", report(0.9, EPOCHS))
    searcher.on_trial_complete("good", error=True)
    searcher.on_trial_complete("poor", report(0.1, 1))
    searcher.on_trial_complete("lost", error=True)
    searcher.on_trial_complete("control", report(0.6, EPOCHS))
    after = [searcher.study.trials[trial.number] for trial in running[:4]]
    assert [trial.value for trial in after] == [0.6, 0.1, None, 0.9]
    assert [trial.state for trial in after] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.COMPLETE,
    ]
    assert control["control"]


def test_trials_that_wait_are_proposed_whenever_the_study_is_built_anew(space: Space) -> None:
    first = OptunaSampler(space, trials=60, parallel=2, epochs=EPOCHS, seed=0)
    points = [first.suggest(str(number)) for number in range(60)]
    trials = [
        recorded(number, point, "interrupted" if number % 2 else "stopped", [0.1])
        for number, point in enumerate(points)
    ]
    second = OptunaSampler(
        space, trials=60, parallel=2, epochs=EPOCHS, seed=0, recorded=trials, learns_from=8
    )
    for number in range(1, 60, 2):
        assert second.suggest(str(number)) == points[number]
        second.on_trial_complete(str(number), report(0.2, 2))
    assert second.suggest("new")[NUMBER] == 60


def test_the_seed_repeats_a_long_search_too(space: Space) -> None:
    def points(seed: int) -> list[Any]:
        searcher = OptunaSampler(
            space, trials=60, parallel=1, epochs=EPOCHS, seed=seed, learns_from=20
        )
        proposed = []
        for number in range(60):
            proposed.append(searcher.suggest(str(number)))
            value = proposed[-1].get("kd.temperature", 1.0) / 100
            searcher.on_trial_complete(str(number), report(value, 1 + number % EPOCHS))
        return proposed

    assert points(1) == points(1)
    assert points(1)[30:] != points(2)[30:]
    assert len({str(sorted({**point, NUMBER: 0}.items())) for point in points(1)[20:]}) == 40
