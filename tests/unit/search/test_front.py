"""The front of accuracy against cost: what one more trial may add, and whose it is to be."""

import math
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from typer.testing import CliRunner

from kdcore.networks.cost import NetworkCost
from search.cli.app import app
from search.errors import SearchError
from search.leaderboard.formats import as_bytes
from search.leaderboard.front import costs_of, front, front_by, front_in_lines
from search.leaderboard.ranking import leaderboard
from search.leaderboard.tables import leaderboard_table
from search.record.decisions import Proposal
from search.record.record import SearchRecord, TrialRecord
from search.record.storage import Storage
from search.report.plots.accuracy_against_cost import accuracy_against_cost
from search.session.sampling.front import Front, TowardsFront
from search.session.search import Search
from tests.benchmarks.front import gap, rule, turns
from tests.cases import Case
from tests.records import write_record
from tests.synthetic import made_up_search

COSTS = {"large": 4000.0, "small": 100.0, "middle": 1000.0}


def area(bests: dict[str, float], steps: int = 20_000) -> float:
    """Below the staircase, by the midpoint rule over the logarithm of the cost."""
    low, top = math.log(100), math.log(4000)
    high = top + (top - low) / 2  # the last step is as wide as the mean of the two others
    total = 0.0
    for step in range(steps):
        place = low + (high - low) * (step + 0.5) / steps
        reached = [best for name, best in bests.items() if math.log(COSTS[name]) <= place]
        total += max(reached, default=0.0)
    return total * (high - low) / steps


def test_the_hypervolume_is_the_area_below_the_staircase() -> None:
    sought = Front(COSTS)
    assert sought.students == ["small", "middle", "large"]
    for bests in (
        {"small": 0.7, "middle": 0.8, "large": 0.9},
        {"small": 0.7, "middle": 0.6, "large": 0.75},
        {"middle": 0.5, "large": 0.4},
        {"large": 0.9},
        {},
    ):
        with Case(bests):
            assert sought.hypervolume(bests) == pytest.approx(area(bests), rel=1e-3)


def test_what_a_trial_is_expected_to_add_is_the_mean_over_what_it_may_reach() -> None:
    results = {"small": [0.8, 0.7, 0.75, 0.2], "middle": [0.82, 0.5], "large": [0.81]}
    trials = {"small": 4, "middle": 5, "large": 1}
    sought, bests = Front(COSTS), {name: max(each) for name, each in results.items()}
    found = sought.expected_gains(results, trials)
    # The better half of `small` is 0.8 and 0.75 over 0.7, that of `middle` 0.82 over 0.5.
    own = {"small": [0.1, 0.05], "middle": [0.32], "large": []}
    usual = (0.02 + 0.1 + 0.05 + 0.32) / (1 + 3)
    before, draws = sought.hypervolume(bests), 20_000
    for name, excesses in own.items():
        mean = (12 * usual + sum(excesses)) / (12 + len(excesses))
        gains = []
        for draw in range(draws):
            excess = mean * (1 / math.sqrt((draw + 0.5) / draws) - 1)  # Lomax, shape 2, mean `mean`
            after = sought.hypervolume(bests | {name: bests[name] + excess})
            gains.append(after - before)
        with Case(name):
            assert found[name] == pytest.approx(fmean(gains) / (trials[name] + 1), rel=0.02)


def test_a_student_that_a_cheaper_one_beats_and_one_with_many_trials_come_later() -> None:
    sought = Front(COSTS)
    equal = {"small": [0.7, 0.6], "middle": [0.8, 0.7], "large": [0.9, 0.8]}
    counts = dict.fromkeys(COSTS, 2)
    gains = sought.expected_gains(equal, counts)
    assert sought.expected_gains({**equal, "large": [0.5, 0.4]}, counts)["large"] < gains["large"]
    fewer = sought.expected_gains(equal, {**counts, "small": 8})
    assert fewer["small"] == pytest.approx(gains["small"] / 3)
    assert sought.next_student(equal, counts) == max(gains, key=lambda name: gains[name])


def test_a_student_without_results_comes_first_unless_its_trials_fail() -> None:
    sought = Front(COSTS)
    results = {"small": [0.9], "middle": [], "large": []}
    assert sought.next_student(results, {"small": 1, "middle": 1, "large": 0}) == "large"
    assert sought.next_student(results, {"small": 1, "middle": 1, "large": 1}) == "middle"
    assert sought.next_student(results, {"small": 1, "middle": 3, "large": 2}) == "large"
    assert sought.next_student(results, {"small": 9, "middle": 3, "large": 3}) == "small"
    assert Front({"b": 5.0, "a": 5.0}).next_student({"a": [], "b": []}, {"a": 0, "b": 0}) == "a"


def test_the_rule_finds_more_of_the_front_than_taking_turns() -> None:
    worlds = range(2000, 2200)
    ours, theirs = (fmean(gap(way, world, 6) for world in worlds) for way in (rule, turns))
    assert ours < theirs


class Sampler:
    """Proposes what it was asked with."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[float | None], int]] = []

    def propose(
        self, number: int, ended: list[FrozenTrial], known: set[frozenset[tuple[str, object]]]
    ) -> tuple[dict[str, object], Proposal]:
        assert not any(dict(settings).keys() & {"student"} for settings in known)
        assert not any("student" in trial.params for trial in ended)
        self.asked.append((number, [trial.value for trial in ended], len(known)))
        return {"objective.1": "kd"}, Proposal(by="random")


def finished(record: SearchRecord) -> list[TrialRecord]:
    return [trial for trial in record.trials if trial.state == "finished"]


@pytest.fixture(scope="module")
def record() -> SearchRecord:
    made = made_up_search(
        30, students=("resnet8", "mobilenetv2", "vgg8"), methods=("none", "kd"), grace_epochs=8
    )
    costs = {
        "resnet8": NetworkCost(77_754, 900, 3.0, 20.0, "CPU", 1),
        "mobilenetv2": NetworkCost(815_000, 100, 2.0, 30.0, "CPU", 1),
        "vgg8": NetworkCost(3_963_000, 500, 1.0, 10.0, "CPU", 1),
    }
    return made.model_copy(update={"student_costs": costs})


def best_of(record: SearchRecord, student: str) -> float:
    return max(trial.score or 0.0 for trial in finished(record) if trial.student == student)


def test_the_front_has_the_best_finished_trial_of_each_student_that_none_beats(
    record: SearchRecord,
) -> None:
    fronts = set()
    for cost in ("parameters", "multiply_adds", "latency_ms", "batch_latency_ms"):
        by_name = front_by(record, True, cost)
        assert by_name is not None
        costs = costs_of(record, by_name)
        expected = [
            student
            for student in sorted(costs, key=lambda name: costs[name])
            if all(
                best_of(record, other) < best_of(record, student)
                for other in costs
                if costs[other] < costs[student]
            )
        ]
        found = front(record, record.trials, by_name)
        with Case(cost):
            assert [trial.student for trial in found] == expected
            assert [trial.score for trial in found] == [best_of(record, s) for s in expected]
            rows = leaderboard(record, front_by=by_name)
            assert {row.trial for row in rows} == {trial.number for trial in found}
        fronts.add(tuple(expected))
    assert len(fronts) > 1


def test_the_leaderboard_of_the_front_names_its_cost(record: SearchRecord) -> None:
    table = leaderboard_table(record, front_by="multiply_adds")
    heads = [column.header for column in table.columns]
    assert "multiply-adds" in heads
    cells = list(table.columns[heads.index("multiply-adds")].cells)
    assert "100" in cells
    assert "front of held-out accuracy against multiply-adds for one image" in str(table.caption)
    assert "multiply-adds" not in [column.header for column in leaderboard_table(record).columns]
    lines = as_bytes(record, "csv", front_by="latency_ms").decode().splitlines()
    assert len(lines) == 1 + len(front(record, record.trials, "latency_ms"))
    controls = leaderboard(record, "none", front_by="parameters")
    assert {row.objective for row in controls} == {"none"}


def test_the_interface_refuses_costs_that_are_not_there(record: SearchRecord) -> None:
    found = Search(record, Storage("unused"))
    assert set(found.leaderboard(front=True).index) == {
        trial.number for trial in front(record, record.trials, "parameters")
    }
    with pytest.raises(SearchError, match="no cost 'latency'; did you mean 'latency_ms'"):
        found.leaderboard(front=True, cost="latency")
    with pytest.raises(SearchError, match="cost is latency_ms, but only the front uses it"):
        found.leaderboard(cost="latency_ms")


def test_the_command_shows_the_front(record: SearchRecord, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_record(storage, record)

    def told(*options: str) -> Any:
        arguments = ["leaderboard", "made-up-1", *options, "--storage", storage.uri]
        return CliRunner().invoke(app, arguments)

    shown = told("--front", "--cost", "latency_ms", "--format", "csv")
    assert shown.output == as_bytes(record, "csv", front_by="latency_ms").decode()
    assert (
        told("--front", "--format", "csv").output
        == as_bytes(record, "csv", front_by="parameters").decode()
    )
    assert "only the front uses it" in str(told("--cost", "latency_ms").exception)
    assert told("--front", "--cost", "watts").exit_code == 2


def towards(record: SearchRecord, cost: str) -> SearchRecord:
    """The same, as a search for the front."""
    changes = {"goal": "pareto", "cost": cost}
    search = record.experiment.search.model_copy(update=changes)
    experiment = record.experiment.model_copy(update={"search": search})
    return record.model_copy(update={"experiment": experiment})


def test_a_search_for_the_front_says_that_there_is_one_and_shows_its_cost(
    record: SearchRecord,
) -> None:
    assert front_in_lines(record) == []
    sought = towards(record, "multiply_adds")
    first, *_, last = front_in_lines(sought)
    names = [trial.student for trial in front(sought, sought.trials, "multiply_adds")]
    assert first.endswith(f"against multiply-adds for one image has {', '.join(names)}:")
    assert "kdsearch best made-up-1 --max-params N" in last
    figure = accuracy_against_cost(sought)
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "multiply-adds for one image",
        "parameters",
    ]
    assert front_by(sought, True, None) == "multiply_adds"


def test_a_student_is_chosen_then_its_own_sampler_is_asked() -> None:
    students = ["small", "middle", "large"]
    chance = random.Random(0)
    ended, known = [], set()
    for number in range(30):
        student = students[number % 3]
        known.add(frozenset({("student", student), ("number", number)}))
        ended.append(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                value=chance.random() / 10 + students.index(student) / 10,
                params={"student": student},
                distributions={"student": CategoricalDistribution(students)},
            )
        )
    samplers = {student: Sampler() for student in students}
    proposer = TowardsFront(COSTS, samplers, learns_from=6, seed=0)
    point, _ = proposer.propose(30, ended, known)
    assert point == {"student": point["student"], "objective.1": "kd"}
    own = [trial.value for trial in ended if trial.params["student"] == point["student"]]
    results = {s: [t.value or 0.0 for t in ended if t.params["student"] == s] for s in students}
    assert point["student"] == Front(COSTS).next_student(results, dict.fromkeys(students, 10))
    ((number, values, trials),) = samplers[point["student"]].asked
    assert (number, trials, len(values)) == (30, 10, 5), "a part of ten, with the best"
    assert set(values) < set(own)
    assert max(own) in values
    again = TowardsFront(COSTS, samplers, learns_from=6, seed=0)
    assert again.propose(30, ended, known)[0] == point
    assert samplers[point["student"]].asked[0] == samplers[point["student"]].asked[1]
