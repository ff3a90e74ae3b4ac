"""Under Tune: trials run in their order, poor ones are cut, the control never."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.experiment.search_config import Asha
from search.experiment.space.point import IS_CONTROL, NUMBER
from search.record.record import METRIC, REASON, REPORT, TIME
from search.stopping.rungs import Rungs
from search.stopping.scheduler import ControlSparing, Fifo
from tests.unit.search.test_recorder import report_of

EPOCHS = 9


def scheduler() -> ControlSparing:
    return ControlSparing(Rungs(Asha(grace_epochs=1, reduction=3), epochs=EPOCHS), epochs=EPOCHS)


def decide(asha: ControlSparing, number: int, accuracy: float, epoch: int, **config: Any) -> str:
    trial: Any = SimpleNamespace(config={NUMBER: number, **config})
    report = {METRIC: accuracy, TIME: epoch, REPORT: report_of(epoch, EPOCHS, {})}
    return asha.on_trial_result(None, trial, report)


def test_a_trial_below_the_rung_is_stopped_and_one_above_goes_on() -> None:
    asha = scheduler()
    for number in range(5):
        decide(asha, number, 0.9, 1)
    assert decide(asha, 5, 0.1, 1) == TrialScheduler.STOP
    assert decide(asha, 6, 0.95, 1) == TrialScheduler.CONTINUE


def test_the_first_to_come_goes_on_only_until_better_ones_have_come() -> None:
    asha = scheduler()
    assert decide(asha, 0, 0.1, 1) == TrialScheduler.CONTINUE
    for number in range(1, 5):
        decide(asha, number, 0.9, 1)
    assert decide(asha, 0, 0.1, 2) == TrialScheduler.STOP


def test_a_poor_control_goes_on_to_its_last_epoch() -> None:
    asha = scheduler()
    for number in range(5):
        for epoch in range(1, EPOCHS):
            decide(asha, number, 0.9, epoch)
    for epoch in range(1, EPOCHS):
        decision = decide(asha, 5, 0.1, epoch, **{IS_CONTROL: True})
        assert decision == TrialScheduler.CONTINUE
    assert decide(asha, 5, 0.1, EPOCHS, **{IS_CONTROL: True}) == TrialScheduler.STOP


def test_epochs_told_once_more_are_not_judged_again() -> None:
    asha = scheduler()
    assert decide(asha, 0, 0.1, 2) == TrialScheduler.CONTINUE
    for number in range(1, 4):
        decide(asha, number, 0.9, 1)
    assert decide(asha, 0, 0.1, 1) == TrialScheduler.CONTINUE


def test_preparatory_epochs_on_top_count_for_no_rung() -> None:
    ahead = 2
    usual, asha = (
        ControlSparing(
            Rungs(Asha(grace_epochs=1, reduction=3), epochs=EPOCHS),
            epochs=EPOCHS,
            on_top=lambda point: ahead if point[NUMBER] == 5 else 0,
        )
        for _ in range(2)
    )
    for each in (usual, asha):
        for number in range(5):
            for epoch in range(1, EPOCHS):
                decide(each, number, 0.5, epoch)
    for epoch in range(1, ahead + 1):
        assert decide(asha, 5, 0.1, epoch) == TrialScheduler.CONTINUE
    assert decide(asha, 5, 0.1, ahead + 1) == TrialScheduler.STOP
    for epoch in range(ahead + 1, ahead + EPOCHS):
        assert decide(usual, 5, 0.9, epoch) == TrialScheduler.CONTINUE
    assert decide(usual, 5, 0.9, ahead + EPOCHS) == TrialScheduler.STOP


def test_a_trial_that_cannot_go_on_leaves_no_mark_in_the_rungs() -> None:
    rungs = Rungs(Asha(grace_epochs=1, reduction=3), epochs=EPOCHS)
    asha = ControlSparing(rungs, epochs=EPOCHS)
    trial: Any = SimpleNamespace(config={NUMBER: 0})
    report = {METRIC: float("nan"), TIME: 1, REASON: "not finite"}
    assert asha.on_trial_result(None, trial, report) == TrialScheduler.STOP
    assert rungs.results[1] == {}
    assert Fifo().on_trial_result(None, trial, report) == TrialScheduler.STOP
    usual = {METRIC: 0.5, TIME: 1}
    assert Fifo().on_trial_result(None, trial, usual) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("seed", range(10))
def test_the_next_trial_is_the_one_that_tune_would_find_among_all(seed: int) -> None:
    chance, asha, tunes = random.Random(seed), scheduler(), FIFOScheduler()
    trials: list[Any] = []
    controller = SimpleNamespace(get_trials=lambda: trials)
    for number in range(300):
        found = tunes.choose_trial_to_run(controller)
        # All trials of a search are too many to look through: it does without the controller.
        assert asha.choose_trial_to_run(None) is found
        pending = [trial for trial in trials if trial.status == Trial.PENDING]
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        match chance.choice(["add", "run", "run any", "end", "retry"]):
            case "add":
                trials.append(SimpleNamespace(trial_id=str(number), status=Trial.PENDING))
                asha.on_trial_add(None, trials[-1])
            case "run" if found is not None:
                found.status = Trial.RUNNING
            case "run any" if pending:  # in a process that is free
                chance.choice(pending).status = Trial.RUNNING
            case "end" if running:
                chance.choice(running).status = chance.choice([Trial.TERMINATED, Trial.ERROR])
            case "retry" if running:
                failed = chance.choice(running)
                failed.status = Trial.PENDING
                trials.remove(failed)
                trials.append(failed)
                asha.on_trial_add(None, failed)
