"""The rungs: where they are, who goes on, and that they can be built again."""

import random

import pytest

from search.experiment.schema import Asha
from search.stopping.rungs import Rungs


@pytest.mark.parametrize(
    ("grace", "reduction", "epochs", "expected"),
    [(1, 3, 27, [1, 3, 9]), (2, 2, 9, [2, 4, 8]), (1, 1.5, 4, [1, 2, 3]), (5, 3, 5, [])],
)
def test_rungs_are_a_factor_apart_and_below_the_budget(
    grace: int, reduction: float, epochs: int, expected: list[int]
) -> None:
    rungs = Rungs(Asha(grace_epochs=grace, reduction=reduction), epochs=epochs)
    assert list(rungs.results) == expected


@pytest.mark.parametrize(("come", "places"), [(1, 1), (3, 2), (8, 2), (9, 3), (11, 3), (12, 4)])
def test_the_best_third_rounded_down_goes_on_and_the_best_two_always(
    come: int, places: int
) -> None:
    rungs = Rungs(Asha(grace_epochs=1, reduction=3), epochs=9)
    for trial in range(come):
        rungs.add(trial, 1, -trial)
    assert [trial for trial in range(come) if rungs.keeps(trial, 1)] == list(range(places))


@pytest.mark.parametrize("come", range(1, 30))
@pytest.mark.parametrize("reduction", [1.5, 2, 3, 4])
def test_who_has_passed_a_rung_has_two_places_more(come: int, reduction: float) -> None:
    rungs = Rungs(Asha(grace_epochs=1, reduction=reduction), epochs=2)
    for trial in range(come):
        rungs.add(trial, 1, -trial)
    arriving, passed = (sum(rungs.keeps(trial, epoch) for trial in range(come)) for epoch in (1, 2))
    assert passed == min(come, arriving + 2)


def test_who_came_when_decides_nothing_so_rungs_can_be_built_again() -> None:
    generator = random.Random(0)
    curves = {trial: [generator.random() for _ in range(9)] for trial in range(30)}
    decisions = []
    for _ in range(5):
        rungs = Rungs(Asha(grace_epochs=1, reduction=3), epochs=9)
        for trial in generator.sample(sorted(curves), len(curves)):
            rungs.add_curve(trial, curves[trial][: 1 + trial % 9])
        decisions.append([rungs.keeps(trial, 1 + trial % 9) for trial in curves])
    assert True in decisions[0]
    assert False in decisions[0]
    assert all(decided == decisions[0] for decided in decisions)


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
