"""Whether a teacher has anything to teach, what is said where it has not, and what comes of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from rich.console import Console

from search.errors import ExperimentError, SearchError
from search.experiment.reading import parse_experiment
from search.export.choice import candidates
from search.export.model_card import Score, model_card
from search.leaderboard.progress import how_far
from search.leaderboard.tables import leaderboard_table
from search.leaderboard.teacher_lead import (
    TeacherLead,
    broken_demand,
    known_caution,
    missing_leads,
    no_method_won,
    teacher_caution,
    teacher_lead,
)
from search.record.live_record import LiveRecord
from search.record.record import ConfirmationRun, Confirmed, SearchRecord
from search.record.storage import Storage
from search.report.summary import summary
from search.session import launch
from search.session.recorder import Recorder
from tests.cases import Case
from tests.records import write_record
from tests.synthetic import made_up_search

PASSED = (
    "the student resnet8 alone has passed its teacher resnet20: 97.39 % held out, the teacher "
    "91.30 %"
)
ADVICE = (
    "Give the teacher pretrained weights (teacher.weights), more epochs (teacher.training.epochs "
    "is 2) or another network (teacher.backbone)."
)


def searched(
    teacher: float, *alone: float, demand: bool = False, images: int = 575, **changes: Any
) -> SearchRecord:
    """A search with so accurate a teacher and trials, of which the first is the control."""
    record = made_up_search(len(alone), methods=("none", "kd"), grace_epochs=None)
    trials = tuple(
        trial.model_copy(update={"heldout_accuracy": accuracy})
        for trial, accuracy in zip(record.trials, alone, strict=True)
    )
    assert trials[0].is_control
    search = record.experiment.search.model_copy(update={"teacher_must_lead": demand})
    values: dict[str, Any] = {
        "experiment": record.experiment.model_copy(update={"search": search}),
        "trials": trials,
        "teacher_metrics": {"heldout_accuracy": teacher},
        "heldout_images": images,
    }
    return record.model_copy(update=values | changes)


def test_a_lead_is_missing_within_two_standard_errors_and_below() -> None:
    # 2 * sqrt((0.95 * 0.05 + 0.9 * 0.1) / 575) = 3.1 points, a tenth of that of 57,500 images.
    for number, (teacher, images, missing, noise) in enumerate(
        (
            (0.95, 575, False, False),
            (0.95, 200, True, True),
            (0.92, 575, True, True),
            (0.92, 57_500, False, False),
            (0.90, 57_500, True, True),
            (0.88, 575, True, True),
            (0.80, 575, True, False),
        )
    ):
        with Case(number):
            lead = teacher_lead(searched(teacher, 0.9, images=images), "resnet8")
            assert lead is not None
            assert lead.size == pytest.approx(teacher - 0.9)
            assert (lead.is_missing, lead.is_noise) == (missing, noise)
    assert teacher_lead(searched(0.9, 0.8, teacher_metrics={}), "resnet8") is None
    assert teacher_lead(searched(0.9, 0.8, trials=()), "resnet8") is None


def test_what_is_wrong_with_a_teacher_is_told_with_the_ways_out() -> None:
    assert teacher_caution(searched(0.913, 0.9739)) == f"{PASSED}. {ADVICE}"
    assert teacher_caution(searched(0.9843, 0.9739)) == (
        "the teacher resnet20 may have nothing to teach resnet8: its 98.43 % held out are within "
        f"noise (1.69 points) of the 97.39 % that the student reaches alone. {ADVICE}"
    )
    assert teacher_caution(searched(0.99, 0.9)) == ""
    weights = searched(0.9, 0.95)
    teacher = weights.experiment.teacher_configs["resnet20"].model_copy(
        update={"training": None, "weights": "DEFAULT"}
    )
    experiment = weights.experiment.model_copy(update={"teacher": teacher})
    assert teacher_caution(weights.model_copy(update={"experiment": experiment})).endswith(
        "Give the teacher other weights (teacher.weights is DEFAULT) or another network "
        "(teacher.backbone)."
    )


def test_of_many_students_only_a_few_are_spoken_of_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("search.leaderboard.teacher_lead._MOST_STUDENTS", 2)
    students = ("resnet8", "vgg8", "mobilenetv2")
    record = made_up_search(6, methods=("none", "kd"), students=students, grace_epochs=None)
    record = record.model_copy(update={"teacher_metrics": {"heldout_accuracy": 0.1}})
    assert [lead.student for lead in missing_leads(record)] == list(students)
    caution = teacher_caution(record)
    assert "mobilenetv2" not in caution
    assert "; so it is with 1 more of the students. Give the teacher" in caution


def test_board_report_and_display_tell_of_a_poor_teacher_and_of_a_control_that_won() -> None:
    record = searched(0.913, 0.9739, 0.97, 0.96, ended="it was enough")
    console = Console(width=400)
    with console.capture() as capture:
        console.print(leaderboard_table(record))
    shown = " ".join(capture.get().split())
    for words in (
        "The search ended early: it was enough.",
        "No method beat training without a teacher.",
        f"Caution: {PASSED}. {ADVICE}",
    ):
        assert words in shown
    text = summary(record)
    assert text.startswith("**No method beat training without a teacher.**")
    assert "**resnet8** trained without a teacher (the control) reaches **97.39 %**" in text
    assert f"**Caution:** {PASSED}. {ADVICE}" in text
    assert how_far(record).endswith("best 97.39 % (trial 0, the control)")
    won = searched(0.99, 0.9, 0.95)
    with console.capture() as capture:
        console.print(leaderboard_table(won))
    for text in (capture.get(), summary(won), how_far(won)):
        assert "without a teacher" not in text
        assert "Caution" not in text
        assert "the control)" not in text.replace("none (control)", "")


def confirmed(record: SearchRecord, role: Any, number: int | None, accuracy: float) -> Confirmed:
    trial = record.trials[number or 1]
    return Confirmed(
        label=str(number),
        role=role,
        trial=number,
        student=trial.student,
        objective="none" if role == "control" else "kd(weight=1)",
        point=trial.point,
        runs=tuple(
            ConfirmationRun(seed=seed, test_accuracy=accuracy, heldout_accuracy=accuracy)
            for seed in (1, 2)
        ),
    )


def test_no_method_won_where_the_first_of_the_board_is_a_control() -> None:
    record = searched(0.99, 0.9, 0.8)
    words = "no method beat training without a teacher"
    assert no_method_won(record) == words
    assert no_method_won(record.model_copy(update={"state": "running"})) == f"{words} so far"
    assert no_method_won(searched(0.99, 0.9)) == "", "no method was tried"
    assert no_method_won(searched(0.99, 0.9, 0.91)) == ""
    # Fresh seeds decide, where there are any.
    again = [confirmed(record, "control", 0, 0.85), confirmed(record, "best", 1, 0.86)]
    assert no_method_won(record.model_copy(update={"confirmed": tuple(again)})) == ""
    again[1] = confirmed(record, "best", 1, 0.84)
    assert no_method_won(record.model_copy(update={"confirmed": tuple(again)})) == words
    again.append(confirmed(record, "published", None, 0.87))
    assert no_method_won(record.model_copy(update={"confirmed": tuple(again)})) == ""


def test_of_several_students_the_verdict_names_the_one() -> None:
    record = made_up_search(
        8, methods=("none", "kd"), students=("resnet8", "vgg8"), grace_epochs=None
    )
    accuracies = {
        trial.number: 0.7 + 0.1 * trial.is_control + 0.05 * (trial.student == "vgg8")
        for trial in record.trials
    }
    trials = tuple(
        trial.model_copy(update={"heldout_accuracy": accuracies[trial.number]})
        for trial in record.trials
    )
    record = record.model_copy(update={"trials": trials})
    assert no_method_won(record) == "no method beat training vgg8 without a teacher"
    assert no_method_won(record, "resnet8") == "no method beat training resnet8 without a teacher"


def test_the_model_card_of_a_control_says_so(tmp_path: Path) -> None:
    images = SimpleNamespace(
        image_size=(8, 8),
        num_classes=10,
        in_channels=1,
        train=[0],
        heldout=[0],
        test=[0],
        digest="x",
        unlabelled=None,
    )
    for number, (accuracy, says) in enumerate(((0.8, True), (0.95, False))):
        with Case(number):
            record = searched(0.99, 0.9, accuracy)
            (picked, *_) = candidates(record)
            scores = [Score(picked.objective, picked.heldout_accuracy, None)]
            card = model_card(record, picked, scores, Mock(**vars(images)), (), (), tmp_path, {})
            assert card.startswith("# resnet8, trained without a teacher\n") == says
            verdict = "It is the control of that search: no method beat training without a teacher."
            assert (verdict in card) == says
            assert ("- objective: cross-entropy alone\n" in card) == says


def recorded(record: SearchRecord) -> tuple[LiveRecord, Mock, Any]:
    """What becomes of a search when its first trial ends: its record, its display, its end."""
    first = record.trials[0].model_copy(update={"state": "running"})
    search = LiveRecord(record.model_copy(update={"trials": (first, *record.trials[1:])}))
    display, stop = Mock(), SimpleNamespace(made=False)
    recorder = Recorder(search, Mock(pause=0.0), Mock(), Mock(ids={}), Mock(), display, stop)
    for _ in range(2):  # a further control of the same accuracy ends
        recorder._end(first.model_copy(update={"state": "finished"}))
    return search, display, stop


def test_a_control_that_ends_has_the_display_warn_and_ends_a_search_that_demands_a_lead() -> None:
    for number, (teacher, demand, warned, ends) in enumerate(
        (
            (0.913, False, True, False),
            (0.913, True, True, True),
            (0.9843, True, True, True),
            (0.999, True, False, False),
        )
    ):
        with Case(number):
            search, display, stop = recorded(searched(teacher, 0.9739, 0.5, demand=demand))
            said = " ".join(str(call) for call in display.say.call_args_list)
            assert said.count("caution: the ") == said.count(ADVICE) == warned
            assert stop.made == ends
            assert bool(search.head.ended) == ends
            assert (broken_demand(search.record) is not None) == ends
            if ends:
                assert search.head.ended.endswith(", and search.teacher_must_lead is true")


def test_a_method_that_ends_says_nothing_of_the_teacher() -> None:
    record = searched(0.913, 0.9739, 0.5, demand=True)
    search = LiveRecord(record)
    display, stop = Mock(), SimpleNamespace(made=False)
    Recorder(search, Mock(pause=0.0), Mock(), Mock(ids={}), Mock(), display, stop)._end(
        record.trials[1]
    )
    display.say.assert_not_called()
    assert not stop.made


def test_resuming_such_a_search_says_why_it_ended_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    record = searched(0.913, 0.9739, 0.5, demand=True)
    search = record.experiment.search.model_copy(update={"trials": 9})
    experiment = record.experiment.model_copy(update={"search": search})
    write_record(storage, record.model_copy(update={"experiment": experiment}))
    with pytest.raises(SearchError) as refused:
        launch.resume("made-up-1", storage=storage)
    assert str(refused.value) == (
        f"made-up-1 has ended, as search.teacher_must_lead is true, and {PASSED}. {ADVICE} That is "
        "another search; to go on with this one all the same: --set search.teacher_must_lead=false"
    )
    with pytest.raises(ExperimentError, match="is 'perhaps', but"):
        launch.resume("made-up-1", storage=storage, overrides=["search.teacher_must_lead=perhaps"])
    ran: list[SearchRecord] = []
    monkeypatch.setattr(
        launch, "plan", lambda experiment, *_, begun: SimpleNamespace(experiment=experiment)
    )
    monkeypatch.setattr(launch, "_run", lambda prepared, storage, record, *rest: ran.append(record))
    launch.resume("made-up-1", storage=storage, overrides=["search.teacher_must_lead=false"])
    assert [each.ended for each in ran] == [""]


def test_check_compares_with_the_controls_of_earlier_searches(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_record(storage, searched(0.99, 0.9739, 0.98))
    write_record(storage, searched(0.99, 0.96, 0.98, name="made-up-2"))
    (tmp_path / "searches/broken").mkdir()
    (tmp_path / "searches/broken/search.json").write_text("{")
    experiment = made_up_search(2).experiment
    caution = known_caution(experiment, {"resnet20": 0.913}, 575, storage)
    assert caution == f"{PASSED.replace('held out', 'held out in made-up-1')}. {ADVICE}"
    assert known_caution(experiment, {"resnet20": 0.9999}, 575, storage) == ""

    def changed(**keys: Any) -> Any:
        return parse_experiment(experiment.model_dump(mode="json") | keys, "")

    other = changed(data={"name": "digits", "heldout_fraction": 0.2})
    assert known_caution(other, {"resnet20": 0.5}, 575, storage) == "", "other images are held out"
    assert known_caution(changed(student="resnet14"), {"resnet20": 0.5}, 575, storage) == ""
    shorter = changed(training={"epochs": 20})
    assert known_caution(shorter, {"resnet20": 0.5}, 575, storage) == "", (
        "the control was trained for longer"
    )
    assert known_caution(changed(training={"epochs": 40}), {"resnet20": 0.5}, 575, storage) != ""
    # Those earlier searches know accuracies alone; the next one knows the metric.
    search = {**experiment.search.model_dump(mode="json"), "metric": "balanced_accuracy"}
    balanced = changed(search=search)
    assert known_caution(balanced, {"resnet20": 0.5}, 575, storage) == ""
    later = searched(0.99, 0.9, 0.5, name="made-up-3")
    control = later.trials[0].model_copy(update={"heldout_balanced_accuracy": 0.7})
    trials = (control, *later.trials[1:])
    write_record(storage, later.model_copy(update={"trials": trials}))
    caution = known_caution(balanced, {"resnet20": 0.6}, 575, storage)
    assert "70.00 % balanced accuracy held out in made-up-3, the teacher 60.00 %" in caution


def test_a_lead_is_that_of_what_the_search_ranks_by() -> None:
    record = searched(0.99, 0.95)
    search = record.experiment.search.model_copy(update={"metric": "balanced_accuracy"})
    metrics = {"heldout_accuracy": 0.99, "heldout_balanced_accuracy": 0.60}
    control = record.trials[0].model_copy(update={"scores": (0.5, 0.7)})
    record = record.model_copy(
        update={
            "experiment": record.experiment.model_copy(update={"search": search}),
            "teacher_metrics": metrics,
            "trials": (control,),
        }
    )
    assert "70.00 % balanced accuracy held out, the teacher 60.00 %" in teacher_caution(record)
    assert teacher_caution(searched(0.99, 0.90)) == ""


def test_a_lead_has_a_size_and_says_of_which_search_it_is() -> None:
    lead = TeacherLead("resnet20", "resnet8", 0.91, 0.90, 0.02, search="digits-1")
    assert lead.size == pytest.approx(0.01)
    assert str(lead).endswith("of the 90.00 % that the student reaches alone in digits-1")
