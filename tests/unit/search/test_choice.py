"""Who is confirmed, how that ranks, and who is picked within which limits."""

import io
from typing import Any

import pytest
from rich.console import Console

from kdcore.methods.kd import KD
from kdcore.networks.cost import NetworkCost
from search.errors import SearchError
from search.experiment.space.point import with_published
from search.experiment.space.trial_config import trial_config
from search.export.choice import Limits, candidates, pick
from search.leaderboard.formats import as_bytes
from search.leaderboard.front import front
from search.leaderboard.ranking import leaderboard, rank
from search.leaderboard.tables import confirmed_table
from search.record.record import ConfirmationRun, Confirmed, SearchRecord, TrialRecord
from search.record.wording import WINNERS_CURSE
from tests.synthetic import finished_search


def trial(
    number: int, accuracy: float | None, student: str = "resnet8", **more: Any
) -> TrialRecord:
    values: dict[str, Any] = {
        "number": number,
        "student": student,
        "point": {"student": student, "objective.1": "kd", "kd.temperature": 1.0 + number},
        "objective": f"kd(temperature={1 + number})",
        "state": "finished",
        "epochs_done": 4,
        "epochs": 4,
        "heldout_accuracy": accuracy,
        "heldout_loss": 1.0,
        "best_epoch": 4,
        "checkpoint": f"searches/task-1/trials/{number:03d}",
    }
    return TrialRecord(**values | more)


def control(number: int, accuracy: float, student: str = "resnet8") -> TrialRecord:
    point = {"student": student, "objective.1": "none", "control": True}
    return trial(number, accuracy, student, objective="none", point=point)


def confirmed(number: int, *accuracies: float, student: str = "resnet8", **more: Any) -> Confirmed:
    values: dict[str, Any] = {
        "label": str(number),
        "role": "best",
        "trial": number,
        "student": student,
        "objective": f"kd(temperature={1 + number})",
        "point": {},
        "runs": tuple(
            ConfirmationRun(
                seed=seed,
                heldout_accuracy=1 - accuracy,
                heldout_loss=1.0,
                best_epoch=4,
                test_accuracy=accuracy,
                checkpoint=f"{number}-seed{seed}",
            )
            for seed, accuracy in enumerate(accuracies, start=1)
        ),
    }
    return Confirmed(**values | more)


COSTS = {
    "resnet8": NetworkCost(80_000, 10**6, 0.5, 2.0, "CPU", 1),
    "resnet20": NetworkCost(270_000, 10**7, 2.0, 8.0, "CPU", 1),
}


def record_of(*trials: TrialRecord, **changes: Any) -> SearchRecord:
    experiment = {"student": ["resnet8", "resnet20"], "objective": [["none", "at", "kd"]]}
    return finished_search(trials, experiment, **{"student_costs": COSTS} | changes)


SEARCHED = (control(0, 0.90), trial(1, 0.95), trial(2, 0.97), trial(3, 0.99, "resnet20"))


def test_a_student_with_its_teachers_classifier_costs_what_the_whole_does() -> None:
    key = "resnet8, simkd from resnet20"
    costs = COSTS | {key: NetworkCost(90_000, 2 * 10**6, 0.6, 3.0, "CPU", 1)}
    whole = trial(4, 0.98, objective="simkd(weight=1)")
    record = record_of(*SEARCHED, whole, student_costs=costs)
    rows = {row.trial: row.parameters for row in leaderboard(record)}
    assert rows == {0: 80_000, 1: 80_000, 2: 80_000, 3: 270_000, 4: 90_000}
    assert [each.number for each in front(record, record.trials, "parameters")] == [2, 4, 3]
    assert pick(record, Limits(parameters=90_000)).trial == 4
    assert pick(record, Limits(parameters=89_999)).trial == 2
    assert pick(record, Limits(latency_ms=0.55)).trial == 2


def test_confirmed_trials_rank_first_by_their_mean_on_the_test_split() -> None:
    again = (confirmed(1, 0.93, 0.95), confirmed(0, 0.96, 0.96), confirmed(2, 0.99))
    record = record_of(*SEARCHED, confirmed=again)
    assert [each.number for each in rank(record.trials, again)] == [0, 1, 3, 2]
    rows = {row.trial: row for row in leaderboard(record)}
    assert rows[1].test_accuracy == pytest.approx(0.94)
    assert rows[1].test_deviation == pytest.approx(0.014142, abs=1e-6)
    assert rows[1].seeds == 2
    assert rows[2].test_accuracy is None  # of one seed there is no spread
    assert b"test_deviation" in as_bytes(record, "csv")


def test_the_confirmed_gain_is_over_the_same_students_control() -> None:
    kd = confirmed(2, 0.95, 0.97)
    own = confirmed(0, 0.94, 0.95, role="control")
    other = confirmed(5, 0.1, 0.1, role="control", student="resnet20")
    gain = record_of(confirmed=(kd, own, other)).confirmed_gain(kd)
    assert gain is not None
    assert gain.mean == pytest.approx(0.015)
    assert record_of(confirmed=(kd, own)).confirmed_gain(own) is None
    assert record_of(confirmed=(kd, other)).confirmed_gain(kd) is None


def test_the_table_says_spread_gain_and_what_that_means() -> None:
    best = confirmed(2, 0.95, 0.97, 0.96)
    own = confirmed(0, 0.94, 0.95, 0.95, role="control", objective="none")
    lone = confirmed(1, 0.99, role="published")
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(confirmed_table(record_of(*SEARCHED, confirmed=(lone, own, best))))
    text = captured.get()
    lines = [line for line in text.splitlines() if "resnet8," in line]
    assert [line.split()[0] for line in lines] == ["2", "0", "1"]
    assert "97.00" in lines[0]  # what it was in the search
    assert "96.00 ± 1.00" in lines[0]
    assert "+1.33 [-0.10, +2.77] within noise" in lines[0]
    assert "none (control)" in lines[1]
    assert "±" not in lines[2]
    assert WINNERS_CURSE.split()[0] in text


def test_the_published_setting_keeps_student_and_rate_and_nothing_else() -> None:
    record = record_of()
    point = {
        "student": "resnet20",
        "training.learning_rate": 0.3,
        "objective.1": "at",
        "at.weight": 7.0,
        "control": True,
    }
    # By benchmark: the factor of cross-entropy, weight and temperature; version 0.1.0 had none.
    published = {"cifar": (0.1, 0.9, 4), "imagenet": (0.5, 0.5, 1), None: (1, 0.9, 4)}
    for benchmark, expected in published.items():
        config = trial_config(record.experiment, with_published(point, "kd", benchmark))
        (term,) = config.objective
        assert (config.student.label, config.training.learning_rate) == ("resnet20", 0.3)
        assert isinstance(term.params, KD.Params)
        params = term.params
        assert (params.cross_entropy, params.weight, params.temperature) == expected


def test_the_best_within_the_limits_is_picked() -> None:
    record = record_of(*SEARCHED)
    assert pick(record, Limits()).trial == 3
    assert pick(record, Limits(parameters=100_000)).trial == 2
    assert pick(record, Limits(latency_ms=2.0)).trial == 3
    assert pick(record, Limits(latency_ms=1.9, accuracy=0.96)).trial == 2


def test_a_confirmed_student_comes_first_and_the_others_where_it_is_outside() -> None:
    large = confirmed(3, 0.91, 0.92, student="resnet20")
    record = record_of(*SEARCHED, confirmed=(large, confirmed(1, 0.94, 0.96)))
    assert [each.trial for each in candidates(record)] == [1, 3, 2, 0]
    assert pick(record, Limits()).trial == 1
    # By its mean on the test split, not by what it was in the search.
    assert pick(record, Limits(accuracy=0.951)).trial == 2


def test_of_the_seeds_the_best_held_out_is_exported_not_the_best_tested() -> None:
    record = record_of(*SEARCHED, confirmed=(confirmed(1, 0.94, 0.96, 0.95),))
    picked = pick(record, Limits())
    assert picked.seed == 1  # held-out 0.06, where seed 2 has 0.04
    assert picked.test_accuracy == 0.94
    assert picked.checkpoint == "1-seed1"
    assert picked.accuracy == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(parameters=79_999), "trial 2, resnet8, which has 80,000 parameters.*79,999"),
        (Limits(latency_ms=0.4), "takes 0.5 ms an image, but --max-latency-ms is 0.4"),
        (Limits(accuracy=0.995), "trial 3.*held-out accuracy of 99.00 %.*is 99.50 %"),
        (Limits(parameters=100_000, accuracy=0.98), "trial 2.*97.00 %, but --min-accuracy"),
        (Limits(parameters=1, latency_ms=0.1), "parameters.* and takes 0.5 ms"),
    ],
)
def test_where_nobody_is_within_the_nearest_is_named_with_what_excluded_it(
    limits: Limits, message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        pick(record_of(*SEARCHED), limits)


def test_a_student_that_was_not_measured_is_within_no_limit() -> None:
    with pytest.raises(SearchError, match="was not measured"):
        pick(record_of(*SEARCHED, student_costs={}), Limits(parameters=10**9))


def test_a_percentage_is_out_of_range() -> None:
    with pytest.raises(SearchError, match="--min-accuracy is 95, but must be from 0 to 1"):
        Limits(accuracy=95)


def test_without_a_finished_trial_there_is_nobody_to_pick() -> None:
    with pytest.raises(SearchError, match="no trial of task-1 has finished"):
        pick(record_of(trial(0, 0.9, state="stopped")), Limits())
