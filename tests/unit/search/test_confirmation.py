"""Who is trained again, with which seeds, and what is left to do after an interruption."""

from typing import Any

from search.record.record import ConfirmationRun, Confirmed, SearchRecord, TrialRecord
from search.session.retraining.contenders import contenders, fresh_seeds
from search.session.retraining.retraining import Asked
from tests.synthetic import finished_search


def record_of(*trials: TrialRecord, **changes: Any) -> SearchRecord:
    experiment = {
        "student": ["resnet8", "resnet14"],
        "objective": [["none", "kd"], ["none", "at"]],
        "training": {"epochs": 4, "learning_rate": {"low": 0.01, "high": 1.0}},
    }
    return finished_search(trials, experiment | changes)


def trial(number: int, accuracy: float, student: str, *methods: str, **point: Any) -> TrialRecord:
    chosen = {f"objective.{slot}": method for slot, method in enumerate(methods, start=1)}
    rate = {"training.learning_rate": 0.1 if number else 0.2}
    return TrialRecord(
        number=number,
        student=student,
        point={"student": student, **rate, **chosen, **point},
        objective="none" if set(methods) == {"none"} else "+".join(methods),
        state="finished",
        epochs=4,
        heldout_accuracy=accuracy,
    )


SEARCHED = (
    trial(0, 0.90, "resnet8", "none", "none", control=True),
    trial(1, 0.91, "resnet14", "none", "none", control=True),
    trial(2, 0.95, "resnet8", "none", "at", **{"at.weight": 10.0}),
    trial(3, 0.97, "resnet8", "kd", "at", **{"at.weight": 9.0, "kd.temperature": 3.0}),
    trial(4, 0.99, "resnet14", "kd", "none", **{"kd.temperature": 5.0}),
)


def test_the_best_come_with_their_students_controls_and_the_published_setting() -> None:
    chosen = contenders(record_of(*SEARCHED), top=2)
    assert [(each.label, each.role, each.student) for each in chosen] == [
        ("4", "best", "resnet14"),
        ("3", "best", "resnet8"),
        ("kd-resnet14", "published", "resnet14"),
        ("1", "control", "resnet14"),
        ("kd-resnet8", "published", "resnet8"),
        ("0", "control", "resnet8"),
    ]
    published = {each.label: each for each in chosen}["kd-resnet8"]
    # The control's rate; of a record of version 0.1.0, which had no factor of cross-entropy.
    assert published.point == {
        "student": "resnet8",
        "training.learning_rate": 0.2,
        "objective.1": "kd",
        "objective.2": "none",
        "kd.weight": 0.9,
        "kd.cross_entropy": 1.0,
        "kd.temperature": 4.0,
        "kd.standardize": False,
    }
    assert published.trial is None


def test_a_setting_that_is_there_already_is_not_trained_twice() -> None:
    twin = trial(5, 0.96, "resnet8", "kd", "at", **{"at.weight": 9.0, "kd.temperature": 3.0})
    published = trial(6, 0.5, "resnet14", "kd", "none")
    chosen = contenders(record_of(*SEARCHED, twin, published), top=3)
    labels = [each.label for each in chosen]
    assert labels == ["4", "3", "2", "6", "1", "kd-resnet8", "0"]
    assert chosen[3].role == "published"


def test_stopped_trials_and_controls_are_not_among_the_best() -> None:
    stopped = SEARCHED[4].model_copy(update={"state": "stopped"})
    chosen = contenders(record_of(*SEARCHED[:2], stopped), top=3)
    assert chosen == ()


def test_the_seeds_are_fresh_and_always_the_same() -> None:
    record = record_of(seed=2**32 - 2)
    seeds = fresh_seeds(record.experiment, 5)
    assert len(set(seeds)) == 5
    assert record.experiment.seed not in seeds
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert fresh_seeds(record.experiment, 3) == seeds[:3]


def test_after_an_interruption_only_what_has_not_ended_well_is_trained() -> None:
    def with_runs(label: str, *runs: ConfirmationRun) -> Confirmed:
        return Confirmed(
            label=label, role="best", trial=3, student="resnet8", objective="", point={}, runs=runs
        )

    done = ConfirmationRun(seed=1, test_accuracy=0.9, heldout_accuracy=0.9)
    failed = ConfirmationRun(seed=2, reason="no memory")
    chosen = (with_runs("3", done, failed), with_runs("0"))
    left = [(each.label, seed) for each, seed in Asked(chosen, (1, 2), "confirm").missing]
    assert left == [("0", 1), ("3", 2), ("0", 2)]
    cut = record_of(*SEARCHED).model_copy(update={"confirmed": (with_runs("3", done),)})
    assert contenders(cut, top=1)[0].label == "4"
    kept = {each.label: each.runs for each in contenders(cut, top=2)}
    assert kept["3"] == (done,)
    assert kept["4"] == ()
