"""The rungs: where they are, who goes on, and that they can be built again."""

import math
import random

import pytest

from search.experiment.search_config import Asha
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


def test_epochs_on_top_are_before_any_rung() -> None:
    rungs = Rungs(Asha(grace_epochs=1, reduction=3), epochs=9)
    rungs.add_curve(0, [0.1, 0.2, 0.3, 0.4])
    rungs.add_curve(1, [0.9, 0.0, 0.1, 0.2, 0.95], on_top=2)
    assert rungs.results == {1: {0: 0.1, 1: 0.9}, 3: {0: 0.3, 1: 0.95}}


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


def kept_by_the_plain_rule(
    results: dict[int, dict[int, float]], reduction: float, trial: int, epoch: int
) -> bool:
    """The rule as it is told, all results of the rung counted anew."""
    for rung in sorted(results, reverse=True):
        if rung <= epoch and trial in results[rung]:
            better = [each for each in results[rung].values() if each > results[rung][trial]]
            places = max(2, int(len(results[rung]) // reduction))
            return len(better) < (places if rung == epoch else places + 2)
    return True


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_in_whatever_order_the_plain_rule_decides_the_same(seed: int) -> None:
    chance = random.Random(seed)
    reduction = chance.choice([1.5, 2, 3, 4])
    rungs = Rungs(Asha(grace_epochs=chance.randint(1, 3), reduction=reduction), epochs=20)
    told: dict[int, dict[int, float]] = {rung: {} for rung in rungs.results}
    # Many equal values, some that are told twice, and a few that are no numbers.
    values = [*(n / 20 for n in range(20)), math.nan]
    decisions = set()
    for _ in range(600):
        trial, epoch, accuracy = chance.randrange(60), chance.randint(1, 20), chance.choice(values)
        rungs.add(trial, epoch, accuracy)
        if epoch in told:
            told[epoch].setdefault(trial, accuracy)
        asked = (chance.randrange(60), chance.randint(1, 20))
        kept = rungs.keeps(*asked)
        assert kept == kept_by_the_plain_rule(told, reduction, *asked)
        decisions.add(kept)
    assert decisions == {True, False}


class Counting(float):
    """A number that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: float) -> bool:
        Counting.compared += 1
        return float(self) < float(other)

    def __gt__(self, other: float) -> bool:
        Counting.compared += 1
        return float(self) > float(other)


def test_a_report_among_many_trials_is_judged_with_few_comparisons() -> None:
    rungs = Rungs(Asha(grace_epochs=1, reduction=3), epochs=9)
    chance = random.Random(0)
    for trial in range(4096):
        rungs.add(trial, 1, Counting(chance.random()))
    Counting.compared = 0
    rungs.add(4096, 1, Counting(0.5))
    rungs.keeps(4096, 1)
    assert Counting.compared <= 2 * 13
