"""Early stopping: poor trials are cut, the control never."""

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from search.asha import ControlSparingAsha
from search.experiment import Asha
from search.searcher import METRIC, TIME
from search.space import IS_CONTROL

EPOCHS = 9


def scheduler() -> ControlSparingAsha:
    return ControlSparingAsha(Asha(grace_epochs=1, reduction=3), epochs=EPOCHS)


def decide(asha: ControlSparingAsha, name: str, accuracy: float, epoch: int, **config: Any) -> str:
    trial: Any = SimpleNamespace(trial_id=name, config=config)
    if name not in asha._trial_info:
        asha.on_trial_add(None, trial)
    return asha.on_trial_result(None, trial, {METRIC: accuracy, TIME: epoch})


def test_a_trial_below_the_rung_is_stopped_and_one_above_goes_on() -> None:
    asha = scheduler()
    for number in range(5):
        decide(asha, f"good{number}", 0.9, 1)
    assert decide(asha, "poor", 0.1, 1) == TrialScheduler.STOP
    assert decide(asha, "better", 0.95, 1) == TrialScheduler.CONTINUE


def test_a_poor_control_goes_on_to_its_last_epoch() -> None:
    asha = scheduler()
    for number in range(5):
        for epoch in range(1, EPOCHS):
            decide(asha, f"good{number}", 0.9, epoch)
    for epoch in range(1, EPOCHS):
        decision = decide(asha, "control", 0.1, epoch, **{IS_CONTROL: True})
        assert decision == TrialScheduler.CONTINUE
    assert decide(asha, "control", 0.1, EPOCHS, **{IS_CONTROL: True}) == TrialScheduler.STOP
