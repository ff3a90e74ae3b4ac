"""Replays of recorded learning curves under other early stopping."""

import pytest

from search.errors import SearchError
from search.experiment.search_config import Asha
from search.record.record import SearchRecord, TrialRecord
from search.stopping.replay import replay, simulate
from search.stopping.rungs import Rungs
from tests.synthetic import finished_search

EPOCHS = 9


def rungs() -> Rungs:
    return Rungs(Asha(grace_epochs=1, reduction=3), epochs=EPOCHS)


def test_without_rungs_every_trial_runs_to_its_end() -> None:
    curves = {trial: [0.1 * trial] * EPOCHS for trial in range(5)}
    late = Rungs(Asha(grace_epochs=EPOCHS, reduction=3), epochs=EPOCHS)
    assert simulate(curves, late, slots=2) == dict.fromkeys(range(5), EPOCHS)


def test_a_poor_trial_that_came_first_does_not_run_to_its_end() -> None:
    curves = {0: [0.1] * EPOCHS, **{trial: [0.5] * EPOCHS for trial in range(1, 6)}}
    ran = simulate(curves, rungs(), slots=5)
    assert ran[0] == 2
    assert all(ran[trial] == EPOCHS for trial in range(1, 6))
    assert simulate(curves, rungs(), slots=5, spared={0})[0] == EPOCHS


def test_a_trial_with_slow_epochs_is_judged_by_epochs_not_by_time() -> None:
    curves = {trial: [0.1 * trial] * EPOCHS for trial in range(4)}
    seconds = {0: 1.0, 1: 1.0, 2: 1.0, 3: 100.0}
    assert simulate(curves, rungs(), slots=4, epoch_seconds=seconds)[3] == EPOCHS


def test_a_trial_is_judged_by_its_epochs_without_those_on_top() -> None:
    curves = {trial: [0.5] * EPOCHS for trial in range(5)} | {5: [0.1] * (EPOCHS + 3)}
    on_top = dict.fromkeys(range(5), 0) | {5: 3}
    ran = simulate(curves, rungs(), slots=6, on_top=on_top)
    assert ran == dict.fromkeys(range(5), EPOCHS) | {5: 4}


def record_of(*curves: tuple[float, ...]) -> SearchRecord:
    trials = tuple(
        TrialRecord(
            number=number,
            student="resnet8",
            point={},
            objective="kd" if number else "none",
            state="finished" if len(curve) == EPOCHS else "stopped",
            epochs=EPOCHS,
            epochs_done=len(curve),
            accuracies=curve,
            heldout_accuracy=max(curve),
            train_seconds=float(len(curve)),
        )
        for number, curve in enumerate(curves)
    )
    experiment = {"training": {"epochs": EPOCHS}, "search": {"trials": len(curves)}}
    return finished_search(trials, experiment)


def test_a_winner_that_began_slowly_is_seen_to_be_lost() -> None:
    slow = (0.0,) * (EPOCHS - 1) + (1.0,)
    record = record_of((0.1,) * EPOCHS, *[(0.5,) * EPOCHS] * 5, slow)
    early, late = (Asha(grace_epochs=epochs, reduction=3) for epochs in (1, EPOCHS))
    actual, cut, whole = replay(record, [early, late], slots=2)
    assert (actual.epochs, actual.best_accuracy) == (7 * EPOCHS, 1.0)
    assert (cut.best_found, cut.best_accuracy, cut.epochs) == (False, 0.5, 6 * EPOCHS + 1)
    assert (whole.best_found, whole.epochs, whole.unknown) == (True, 7 * EPOCHS, 0)


def test_curves_that_were_cut_short_are_said_to_be_unknown() -> None:
    record = record_of((0.1,) * EPOCHS, (0.5,) * EPOCHS, (0.6,) * 3)
    _, outcome = replay(record, [Asha(grace_epochs=1, reduction=3)], slots=3)
    assert outcome.unknown == 1


def test_a_search_without_a_finished_trial_cannot_be_replayed() -> None:
    with pytest.raises(SearchError, match="no trial of task-1 has finished"):
        replay(record_of((0.1,) * 2), [], slots=1)
