"""The rungs: where they are, who goes on, and that they can be built again."""

import pytest

from search.experiment import Asha
from search.rungs import Rungs


@pytest.mark.parametrize(
    ("grace", "reduction", "epochs", "expected"),
    [(1, 3, 27, [1, 3, 9]), (2, 2, 9, [2, 4, 8]), (1, 1.5, 4, [1, 2, 3]), (5, 3, 5, [])],
)
def test_rungs_are_a_factor_apart_and_below_the_budget(
    grace: int, reduction: float, epochs: int, expected: list[int]
) -> None:
    rungs = Rungs(Asha(grace_epochs=grace, reduction=reduction), epochs=epochs)
    assert list(rungs.results) == expected


def test_the_best_third_goes_on_rounded_up() -> None:
    rungs = Rungs(Asha(grace_epochs=1, reduction=3), epochs=9)
    for trial in range(7):
        rungs.add(trial, 1, trial / 10)
    assert [rungs.keeps(trial, 1) for trial in range(7)] == [False] * 4 + [True] * 3


def test_nobody_is_stopped_before_the_first_rung_or_beside_its_equals() -> None:
    rungs = Rungs(Asha(grace_epochs=2, reduction=3), epochs=9)
    for trial in range(5):
        rungs.add_curve(trial, [0.5, 0.5])
    assert all(rungs.keeps(trial, epoch) for trial in range(5) for epoch in (1, 2))


def test_the_last_rung_counts_so_a_slow_start_can_be_made_good() -> None:
    rungs = Rungs(Asha(grace_epochs=1, reduction=3), epochs=9)
    rungs.add_curve(0, [0.1, 0.5, 0.9])
    for trial in range(1, 6):
        rungs.add_curve(trial, [0.3, 0.4, 0.5])
    assert not rungs.keeps(0, 2)
    assert rungs.keeps(0, 3)


def test_a_curve_counts_by_the_best_epoch_so_far() -> None:
    rungs = Rungs(Asha(grace_epochs=1, reduction=3), epochs=9)
    rungs.add_curve(0, [0.5, 0.7, 0.6, 0.1])
    assert rungs.results == {1: {0: 0.5}, 3: {0: 0.7}}
