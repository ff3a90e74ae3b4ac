"""Hyperband and the median rule; and of every rule that it can be built again."""

import random
from collections import Counter
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

import pytest

from search.experiment.search_config import (
    Asha,
    Hyperband,
    Median,
    SearchConfig,
    StoppingSettings,
)
from search.experiment.space.point import IS_CONTROL, NUMBER
from search.record.decisions import Verdict
from search.record.record import METRIC, REPORT, TIME
from search.stopping.by_student import ByStudent
from search.stopping.hyperband import Brackets
from search.stopping.median import RunningAverages
from search.stopping.named import all_rungs, rule_of
from search.stopping.replay import replay, replay_table, simulate
from search.stopping.rungs import Rungs
from search.stopping.scheduler import ControlSparing
from tests.cases import Case
from tests.synthetic import finished_search
from tests.unit.search.test_recorder import report_of
from tests.unit.search.test_replay import record_of

EPOCHS = 27
RULES: tuple[StoppingSettings, ...] = (
    Asha(grace_epochs=1, reduction=3),
    Hyperband(grace_epochs=1, reduction=3),
    Median(grace_epochs=2, min_trials=3),
)


def random_curves(trials: int, seed: int = 0) -> dict[int, list[float]]:
    chance = random.Random(seed)
    return {trial: [chance.random() for _ in range(EPOCHS)] for trial in range(trials)}


def test_brackets_are_those_of_the_paper() -> None:
    # Li et al. 2018, table 1: R = 81 and eta = 3.
    brackets = Brackets(Hyperband(grace_epochs=1, reduction=3), epochs=81)
    assert [list(each.results) for each in brackets.brackets] == [
        [1, 3, 9, 27],
        [3, 9, 27],
        [9, 27],
        [27],
        [],
    ]
    sizes = [81, 34, 15, 8, 5]
    round_of = [brackets.bracket_of(trial) for trial in range(sum(sizes))]
    assert [round_of.count(bracket) for bracket in range(5)] == sizes
    for had in range(1, len(round_of) + 1):  # in turn: none is far ahead of its share
        counts = Counter(round_of[:had])
        for bracket, size in enumerate(sizes):
            assert abs(counts[bracket] - size * had / sum(sizes)) <= 1, (had, bracket)
    assert [brackets.bracket_of(sum(sizes) + trial) for trial in range(20)] == round_of[:20]


@pytest.mark.parametrize(
    ("grace", "reduction", "epochs", "expected"),
    [
        (1, 3, 30, [[1, 3, 9], [3, 9], [9], []]),
        (2, 2, 9, [[2, 4], [4], []]),
        (5, 3, 5, [[]]),
        (1, 2.5, 9, [[1, 3], [3], []]),
    ],
)
def test_the_last_bracket_stops_nothing(
    grace: int, reduction: float, epochs: int, expected: list[list[int]]
) -> None:
    brackets = Brackets(Hyperband(grace_epochs=grace, reduction=reduction), epochs=epochs)
    assert [list(each.results) for each in brackets.brackets] == expected


def test_a_trial_is_compared_within_its_bracket() -> None:
    rule = Brackets(Hyperband(grace_epochs=1, reduction=3), epochs=EPOCHS)
    alone = {each: Rungs(Asha(grace_epochs=1, reduction=3), epochs=EPOCHS) for each in range(4)}
    curves = random_curves(120)
    for trial, curve in curves.items():
        rule.add_curve(trial, curve)
        alone[rule.bracket_of(trial)].add_curve(trial, curve)
    verdicts = Counter[bool]()
    for trial in curves:
        bracket = rule.bracket_of(trial)
        first = [1, 3, 9, EPOCHS][bracket]
        for epoch in range(1, EPOCHS):
            verdict = rule.judge(trial, epoch)
            expected = alone[bracket].judge(trial, epoch) if epoch >= first else None
            assert verdict == expected
            verdicts[verdict is not None and verdict.stops] += 1
    assert min(verdicts.values()) > 100


def stopped_by_the_plain_rule(
    curves: dict[int, list[float]], settings: Median, trial: int, epoch: int
) -> bool:
    """Golovin et al.: the best so far against the median of means of whole trials."""
    whole = [curve for curve in curves.values() if len(curve) == EPOCHS]
    if epoch < settings.grace_epochs or len(whole) < settings.min_trials:
        return False
    middle = median(fmean(curve[:epoch]) for curve in whole)
    return max(curves[trial][:epoch]) < middle


@pytest.mark.parametrize("seed", range(8))
def test_the_median_rule_is_the_plain_one(seed: int) -> None:
    chance = random.Random(seed)
    settings = Median(grace_epochs=chance.randint(1, 5), min_trials=chance.randint(1, 6))
    rule = RunningAverages(settings, epochs=EPOCHS)
    told: dict[int, list[float]] = {}
    decided = set()
    for _ in range(900):
        trial = chance.randrange(30)
        curve = told.setdefault(trial, [])
        if len(curve) == EPOCHS:
            continue
        # Some are poor, and all get better.
        curve.append(chance.random() * (trial % 4 + 1) / 4 * (len(curve) + 5) / EPOCHS)
        rule.add(trial, len(curve), max(curve), curve[-1])
        rule.add(trial, len(curve), max(curve), curve[-1])  # told once more
        other = chance.choice(sorted(told))
        epoch = chance.randint(1, len(told[other]))
        stops = stopped_by_the_plain_rule(told, settings, other, epoch)
        assert rule.keeps(other, epoch) == (not stops)
        decided.add(stops)
    assert decided == {True, False}


def test_a_median_verdict_tells_what_was_compared() -> None:
    rule = RunningAverages(Median(grace_epochs=2, min_trials=2), epochs=3)
    rule.add_curve(0, [0.2, 0.4, 0.9])
    rule.add_curve(1, [0.9, 0.4, 0.3, 0.5], on_top=1)  # an epoch before the first one
    rule.add_curve(2, [0.1, 0.3])
    assert rule.judge(2, 1) is None
    verdict = rule.judge(2, 2)
    assert verdict is not None
    # Means up to epoch 2: 0.3 and 0.35.
    assert (verdict.stops, verdict.of, verdict.best) == (True, 2, 0.3)
    assert verdict.median == pytest.approx(0.325)
    assert RunningAverages(Median(min_trials=3), epochs=3).judge(2, 2) is None


@pytest.mark.parametrize("settings", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_is_built_again_from_recorded_curves(settings: StoppingSettings) -> None:
    """As a session does that goes on where another was cut off."""
    curves = random_curves(60)
    chance = random.Random(1)
    live = rule_of(settings, epochs=EPOCHS)
    done = dict.fromkeys(curves, 0)
    for _ in range(900):
        trial = chance.choice([each for each in curves if done[each] < EPOCHS][:8])
        done[trial] += 1
        epoch = done[trial]
        live.add(trial, epoch, max(curves[trial][:epoch]), curves[trial][epoch - 1])
    assert any(0 < epochs < EPOCHS for epochs in done.values())
    recorded = {trial: curves[trial][:epochs] for trial, epochs in done.items() if epochs}
    stops = Counter[bool]()
    for order in (sorted(recorded), chance.sample(sorted(recorded), len(recorded))):
        again = rule_of(settings, epochs=EPOCHS)
        for trial in order:
            again.add_curve(trial, recorded[trial])
        for trial in recorded:
            for epoch in range(1, done[trial] + 1):
                assert again.judge(trial, epoch) == live.judge(trial, epoch)
            stops[not again.keeps(trial, done[trial])] += 1
        # The trials that were cut off tell their epochs once more, and go on.
        for trial, curve in recorded.items():
            again.add_curve(trial, curve)
            assert again.judge(trial, done[trial]) == live.judge(trial, done[trial])
    assert min(stops.values()) > 0


def test_among_the_trials_of_a_student_a_rule_decides_as_if_there_were_no_others() -> None:
    curves = random_curves(120)
    for settings in RULES:
        by_student = settings.by_student()
        students = {trial: "small" if trial * 7 % 10 < 4 else "large" for trial in curves}
        for trial, curve in curves.items():  # which is better than any that is small
            curves[trial] = [accuracy + (students[trial] == "large") for accuracy in curve]
        rule = rule_of(by_student, epochs=EPOCHS, student_of=students.__getitem__)
        alone = {student: rule_of(settings, epochs=EPOCHS) for student in ("small", "large")}
        together, only_one = rule_of(settings, epochs=EPOCHS), rule_of(by_student, epochs=EPOCHS)
        for trial, curve in curves.items():
            for each in (rule, alone[students[trial]], together, only_one):
                each.add_curve(trial, curve[: EPOCHS - trial % 5])
        kept = Counter[str]()
        for trial in curves:
            for epoch in range(1, EPOCHS - 4):
                with Case(settings, trial, epoch):
                    verdict = rule.judge(trial, epoch)
                    assert verdict == alone[students[trial]].judge(trial, epoch)
                    assert together.judge(trial, epoch) == only_one.judge(trial, epoch)
            kept[students[trial]] += rule.keeps(trial, 9)
            kept[f"{students[trial]} among all"] += together.keeps(trial, 9)
        with Case(settings, kept):
            assert kept["small"] > 1.5 * kept["small among all"]


def test_a_record_of_an_earlier_version_has_common_rungs() -> None:
    several = {"student": ["resnet8", "resnet14"]}
    for search in ({}, {"stopping": "hyperband"}, {"stopping": "median"}):
        old = finished_search((), {**several, "search": {"trials": 4, **search}}).experiment
        with Case(search):
            assert old.search.rule is not None
            assert "among" not in str(old.model_dump(mode="json"))
            assert not isinstance(rule_of(old.search.rule, epochs=4), ByStudent)
            new = old.search.stopping_by_student()
            assert new.rule is not None
            assert isinstance(rule_of(new.rule, epochs=4), ByStudent)
            written = new.model_dump(mode="json")
            assert written[new.stopping]["among"] == "student"
            assert SearchConfig.model_validate(written) == new
    every = SearchConfig(trials=1, asha=Asha(among="all"))
    assert every.stopping_by_student() == every
    never = SearchConfig(trials=1, asha=None)
    assert never.stopping_by_student() == never


def test_every_rule_spares_the_control_and_tells_why_it_stopped_others() -> None:
    good, poor = [0.5 + epoch / 100 for epoch in range(EPOCHS)], [0.1] * EPOCHS
    for settings in RULES:
        with Case(settings):
            verdicts: dict[int, Verdict] = {}
            rule = rule_of(settings, epochs=EPOCHS)
            scheduler = ControlSparing(rule, epochs=EPOCHS, verdicts=verdicts)

            def run(
                number: int, curve: list[float], scheduler: Any = scheduler, **config: Any
            ) -> int:
                """The epochs that a trial gets."""
                for epoch in range(1, EPOCHS + 1):
                    best, trial = (
                        max(curve[:epoch]),
                        SimpleNamespace(config={NUMBER: number, **config}),
                    )
                    report = report_of(epoch, EPOCHS, {}, curve[epoch - 1])
                    result = {METRIC: best, TIME: epoch, REPORT: report}
                    if scheduler.on_trial_result(None, trial, result) == "STOP":
                        return epoch
                return EPOCHS

            assert run(0, poor, **{IS_CONTROL: True}) == EPOCHS
            assert verdicts == {}
            for number in range(1, 30):
                assert run(number, good) == EPOCHS
            verdicts.clear()
            # All brackets but the last have had some.
            ran = [run(number, poor) for number in range(30, 40)]
            stopped = [30 + place for place, epochs in enumerate(ran) if epochs < EPOCHS]
            assert len(stopped) >= 8
            for number in stopped:
                verdict = verdicts[number]
                assert verdict.stops
                assert verdict.epoch == ran[number - 30] >= settings.grace_epochs


def test_other_rules_can_be_replayed() -> None:
    poor, good = (0.1,) * 9, (0.5,) * 9
    record = record_of(poor, *[good] * 20, *[poor] * 10)
    outcomes = replay(record, RULES, slots=1)
    assert [outcome.settings for outcome in outcomes] == [None, *RULES]
    asha, hyperband, middle = outcomes[1:]
    assert (asha.epochs, middle.epochs) == (21 * 9 + 10, 21 * 9 + 10 * 2)
    assert asha.epochs < hyperband.epochs < 31 * 9, "the last bracket stops none"
    assert all(outcome.best_found and not outcome.unknown for outcome in outcomes)
    table = replay_table(record, outcomes)
    assert list(table.columns[0].cells) == ["as it was", "asha", "hyperband", "median"]
    assert list(table.columns[2].cells) == ["", "3", "3", ""]


def test_a_replay_compares_the_trials_of_each_student() -> None:
    record = record_of(*[(0.5,) * 9] * 12, *[(0.1,) * 9] * 4)
    small = [each.model_copy(update={"student": "resnet14"}) for each in record.trials[12:]]
    both = record.model_copy(update={"trials": (*record.trials[:12], *small)})
    settings = [Asha(grace_epochs=1, reduction=3), Asha(grace_epochs=1, reduction=3, among="all")]
    _, by_student, among_all = replay(both, settings, slots=1)
    assert by_student.epochs == 16 * 9, "none is worse than another of its student"
    assert among_all.epochs == 12 * 9 + 4


def test_median_compares_with_whole_trials_so_the_first_ones_are_not_stopped() -> None:
    curves = {trial: [0.1 * trial] * EPOCHS for trial in range(10)}
    rule = RunningAverages(Median(grace_epochs=1, min_trials=3), epochs=EPOCHS)
    ran = simulate({trial: curves[trial] for trial in range(9, -1, -1)}, rule, slots=1)
    assert [ran[trial] for trial in (9, 8, 7)] == [EPOCHS] * 3
    assert [ran[trial] for trial in range(7)] == [1] * 7


def test_rungs_are_shown_where_there_are_some() -> None:
    for search, expected in (
        ({}, [9, 18]),  # a third of a trial, then twice as long
        ({"asha": {"grace_epochs": 2, "reduction": 3}}, [2, 6, 18]),
        ({"stopping": "hyperband"}, [1, 3, 9]),
        ({"stopping": "median"}, []),
        ({"asha": None}, []),
    ):
        content = {"training": {"epochs": 27}, "search": {"trials": 4, **search}}
        assert all_rungs(finished_search((), content).experiment) == expected
