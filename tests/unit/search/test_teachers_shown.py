"""Several teachers: what tables, reports, pictures, cards and MLflow tell of them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from rich.console import Console

from kdcore.data.image_data import ImageData
from search.experiment.space.point import TEACHER
from search.export.choice import candidates
from search.export.model_card import Score, model_card
from search.leaderboard.comparison import comparison_table
from search.leaderboard.formats import as_bytes, leaderboard_frame
from search.leaderboard.progress import how_far
from search.leaderboard.ranking import rank
from search.leaderboard.tables import leaderboard_table
from search.leaderboard.teacher_lead import (
    gap_closed,
    known_caution,
    missing_leads,
    teacher_caution,
    teacher_lead,
)
from search.record.decisions import Proposal
from search.record.live_record import LiveRecord
from search.record.record import SearchRecord, TrialRecord
from search.record.storage import Storage
from search.report.explanation import explanation
from search.report.files import write_report
from search.report.importance import importances
from search.report.plots.accuracy_by_teacher import accuracy_by_teacher, spread
from search.report.plots.drawings import DRAWINGS, png
from search.report.summary import summary
from search.report.teacher_cache_use import cache_report, clear_cache
from search.session.retraining.contenders import contenders
from search.tracking.mlflow_writer import MlflowWriter
from search.tracking.runs_table import columns
from search.tracking.tracker import Tracker, teacher_param
from tests.records import write_record
from tests.synthetic import made_up_search

TEACHERS = ("resnet20", "resnet56")


@pytest.fixture(scope="module")
def record() -> SearchRecord:
    """With scores of 96.8 and 97.2 % of the teachers."""
    return made_up_search(20, teachers=TEACHERS)


@pytest.fixture(scope="module")
def alone() -> SearchRecord:
    return made_up_search(20)


def text_of(table: Any) -> str:
    console = Console(width=400)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def taught_by(record: SearchRecord, teacher: str) -> TrialRecord:
    """The best trial that learned from a teacher."""
    return next(trial for trial in rank(record.trials) if record.teacher_of(trial) == teacher)


def test_the_leaderboard_has_a_column_of_teachers_only_where_there_are_several(
    record: SearchRecord, alone: SearchRecord
) -> None:
    rows = json.loads(as_bytes(record, "json"))
    assert [(row["status"], row["student"], row["gain"]) for row in rows[:2]] == [
        ("teacher", "resnet20", pytest.approx(0.968 - control_of(record))),
        ("teacher", "resnet56", pytest.approx(0.972 - control_of(record))),
    ]
    for row in rows[2:]:
        point = record.trials[row["trial"]].point
        assert row["teacher"] == point.get(TEACHER, "")
        assert (row["teacher"] == "") == (row["objective"] == "none")
    assert set(leaderboard_frame(record)["teacher"]) == {*TEACHERS, ""}
    ours, theirs = text_of(leaderboard_table(record)), text_of(leaderboard_table(alone))
    assert ours.splitlines()[2].split()[:4] == ["rank", "trial", "teacher", "objective"]
    assert theirs.splitlines()[2].split()[:3] == ["rank", "trial", "objective"]
    assert "teacher resnet20" in theirs
    head, *lines = as_bytes(record, "markdown").decode().splitlines()
    assert "| teacher | objective |" in head
    assert lines[1].split("|")[3:5] == [" resnet20 ", " teacher "]
    assert "teacher | objective" not in as_bytes(alone, "markdown").decode()


def control_of(record: SearchRecord) -> float:
    control = record.control_of("resnet8")
    assert control is not None
    assert control.score is not None
    return control.score


def test_words_name_the_teacher_of_a_trial(record: SearchRecord, alone: SearchRecord) -> None:
    best = rank(record.trials)[0]
    teacher = record.teacher_of(best)
    assert record.words(best) == f"{best.objective} from {teacher}"
    assert record.method_names(best) == f"{best.methods} from {teacher}"
    assert record.words(record.trials[0]) == "none"
    assert explanation(record, best.number)[0].endswith(f"from {teacher}.")
    assert how_far(record).endswith(f"(trial {best.number}, from {teacher})")
    assert " from resnet" not in how_far(alone) + alone.words(rank(alone.trials)[0])
    both = made_up_search(8, teachers=TEACHERS, students=("resnet8", "vgg8"))
    taught = both.trials[2]
    assert both.words(taught) == f"{taught.student}, {taught.objective} from resnet20"


def test_an_explanation_says_that_the_teacher_was_chosen_too(
    record: SearchRecord, alone: SearchRecord
) -> None:
    proposal = Proposal(by="gp", results=9, needed=5, alike=4, alike_needed=4)
    for of, chosen, same in (
        (record, "Student, teacher and methods were", "of the same student, teacher and methods"),
        (alone, "Student and methods were", "of the same student and methods"),
    ):
        last = of.trials[-1].model_copy(update={"proposal": proposal})
        lines = explanation(of.model_copy(update={"trials": (*of.trials[:-1], last)}), last.number)
        assert lines[1].startswith(chosen)
        assert lines[1].endswith(f"from 4 trials {same}.")


def test_the_summary_speaks_of_the_teacher_of_the_best_trial(record: SearchRecord) -> None:
    for teacher, score in zip(TEACHERS, ("96.80", "97.20"), strict=True):
        best = taught_by(record, teacher).model_copy(
            update={"heldout_accuracy": 0.999, "state": "finished"}
        )
        trials = tuple(best if each.number == best.number else each for each in record.trials)
        text = summary(record.model_copy(update={"trials": trials}))
        assert f"** from **{teacher}** reaches **99.90 %**" in text
        assert f"The teacher {teacher} reaches {score} %" in text
    controls = tuple(trial for trial in record.trials if trial.is_control)
    text = summary(record.model_copy(update={"trials": controls}))
    assert "The best teacher, resnet56, reaches 97.20 %" in text


def test_a_lead_is_asked_of_the_best_teacher_and_a_gap_of_the_trials_own(
    record: SearchRecord, tmp_path: Path
) -> None:
    def scored(first: float, other: float) -> SearchRecord:
        metrics = {"heldout_accuracy": first}
        others = {"resnet56": record.other_teachers["resnet56"]}
        others["resnet56"] = others["resnet56"].model_copy(
            update={"metrics": {"heldout_accuracy": other}}
        )
        update = {"teacher_metrics": metrics, "other_teachers": others, "heldout_images": 10**5}
        return record.model_copy(update=update)

    alone = control_of(record)
    good = scored(0.5, 0.99)
    assert good.best_teacher == "resnet56"
    assert missing_leads(good) == []
    assert teacher_caution(good) == ""
    lead = teacher_lead(good, "resnet8", "resnet20")
    assert lead is not None
    assert lead.is_missing
    for teacher, gap in (("resnet20", None), ("resnet56", 0.99 - alone)):
        trial = taught_by(good, teacher)
        gain = good.gain(trial)
        assert gain is not None
        assert gap_closed(good, trial) == (None if gap is None else pytest.approx(gain / gap))
    poor = scored(0.5, 0.6)
    caution = teacher_caution(poor)
    assert "has passed its teacher resnet56: " in caution
    assert "Give the teacher resnet56 pretrained weights (teacher.1.weights), more ep" in caution
    storage = Storage(str(tmp_path))
    write_record(storage, record)
    experiment = record.experiment
    scores = {"resnet20": 0.5, "resnet56": 0.6}
    assert "its teacher resnet56: " in known_caution(experiment, scores, 575, storage)
    assert known_caution(experiment, scores | {"resnet20": 0.9999}, 575, storage) == ""


def test_kd_as_published_is_confirmed_with_the_teacher_of_the_students_best(
    record: SearchRecord,
) -> None:
    for teacher in TEACHERS:
        best = taught_by(record, teacher).model_copy(
            update={"heldout_accuracy": 0.999, "state": "finished"}
        )
        others = (each for each in record.trials if each.number != best.number)
        kept = (each for each in others if each.objective.split("(")[0] != "kd")
        ranked = record.model_copy(update={"trials": (*kept, best)})
        chosen = {each.role: each for each in contenders(ranked, top=1)}
        published = chosen["published"]
        assert published.point[TEACHER] == teacher
        assert published.label == f"kd-resnet8-{teacher}"
        assert TEACHER not in chosen["control"].point
        assert record.words(published).endswith(f" from {teacher}")


def test_a_record_has_further_teachers_only_where_there_are_some(
    record: SearchRecord, alone: SearchRecord
) -> None:
    assert "other_teachers" not in json.loads(alone.model_dump_json())
    again = SearchRecord.model_validate_json(record.model_dump_json())
    assert again.model_dump() == record.model_dump()
    assert list(record.ready_teachers) == list(TEACHERS)
    begun = record.model_copy(update={"other_teachers": {}})
    assert list(begun.ready_teachers) == ["resnet20"]
    live = LiveRecord(begun)
    live.changes()
    live.update(other_teachers=record.other_teachers)
    (change,) = live.changes()
    assert json.loads(change)["search"]["other_teachers"].keys() == {"resnet56"}


def test_mlflow_has_a_run_for_each_teacher_and_the_best_on_the_searchs(
    record: SearchRecord, alone: SearchRecord, digits: ImageData, tmp_path: Path
) -> None:
    def entries(of: SearchRecord) -> list[dict[str, Any]]:
        queue = tmp_path / f"{len(of.experiment.teachers)}.jsonl"
        tracker = Tracker(of.tracking_uri, tmp_path / "artifacts", queue, of, digits)
        tracker.start_search(of, "name: made-up\n", {})
        for label, ready in of.ready_teachers.items():
            only = len(of.experiment.teachers) == 1
            tracker.log_teacher(label, [], ready.metrics, alone=only)
        if len(of.experiment.teachers) > 1:
            tracker.log_best_teacher(of.ready_teachers[of.best_teacher].metrics)
        for trial in of.trials[:2]:
            tracker.start_trial(trial, "x", {"teacher": teacher_param(of, trial)}, None)
        return [json.loads(line) for line in queue.read_text().splitlines()]

    calls: dict[str, list[dict[str, Any]]] = {}
    for entry in entries(alone):
        calls.setdefault(entry["call"], []).append(entry["arguments"])
    (teacher,) = calls["teacher"]
    metrics = {"heldout_accuracy": 0.968, "heldout_loss": 0.1}
    assert teacher == {"backbone": "resnet20", "reports": [], "metrics": metrics}
    assert [each["params"]["teacher"] for each in calls["start_trial"]] == ["resnet20"] * 2
    assert calls["start_search"][0]["params"]["teacher"] == "resnet20"
    queued = entries(record)
    uri = f"sqlite:///{tmp_path}/m.db"
    MlflowWriter(uri, tmp_path / "artifacts", "made-up", "made-up-1").deliver(queued)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("made-up")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    by_role = {
        role: [run.data for run in runs if run.data.tags["kdsearch.role"] == role]
        for role in ("search", "teacher", "trial")
    }
    scores = {run.tags["kdsearch.teacher"]: run.metrics for run in by_role["teacher"]}
    assert {name: each["teacher_heldout_accuracy"] for name, each in scores.items()} == {
        "resnet20": 0.968,
        "resnet56": 0.972,
    }
    (search,) = by_role["search"]
    assert search.params["teacher"] == "resnet20, resnet56"
    assert search.metrics["teacher_heldout_accuracy"] == 0.972
    assert {run.params["teacher"] for run in by_role["trial"]} == {"none", "resnet20"}
    assert "params.`teacher`" in columns(record)
    assert "params.`teacher`" not in columns(alone)


def test_the_card_names_the_students_teacher(record: SearchRecord, digits: ImageData) -> None:
    for picked in (candidates(record)[0], candidates(record)[-1]):
        score = Score("x", 0.9, None)
        commands = ("kdsearch rerun", "kdsearch best")
        card = model_card(
            record, picked, [score, score], digits, (), commands, Path("x"), {}, pictured=False
        )
        teacher = record.teacher_of(picked) or "resnet56"
        other = next(name for name in TEACHERS if name != teacher)
        assert f"- teacher: {teacher}, trained for 2 epochs; the search also had {other}" in card
        assert (f"distilled from {teacher}" in card) != picked.is_control


def test_the_cache_of_each_teacher_is_counted_and_cleared(
    record: SearchRecord, tmp_path: Path
) -> None:
    for name in ("x", "resnet56", "another"):
        folder = tmp_path / f"teacher_cache/{name}-0123"
        folder.mkdir(parents=True)
        (folder / "view0000-outputs.arrow").write_bytes(b"12345")
    storage = Storage(str(tmp_path))
    assert " in 2 files for 2 views" in cache_report(record, storage)
    assert clear_cache(record, storage) == 10
    assert [path.name for path in (tmp_path / "teacher_cache").iterdir()] == ["another-0123"]


def test_two_searches_are_compared_by_their_best_teachers(
    record: SearchRecord, alone: SearchRecord
) -> None:
    table = text_of(comparison_table(alone, record))
    assert "resnet20, resnet56  teacher" in " ".join(table.split("\n")).replace("   ", "  ")
    assert "+0.40" in table


def test_a_report_has_the_teacher_of_each_trial(record: SearchRecord, tmp_path: Path) -> None:
    write_report(record, tmp_path)
    table = json.loads((tmp_path / "leaderboard.json").read_text())
    place = table["columns"].index("teacher")
    assert {row[place] for row in table["data"]} == {*TEACHERS, ""}
    assert all(len(row) == len(table["columns"]) for row in table["data"])
    assert (tmp_path / "8_accuracy_by_teacher.png").exists()


def test_the_teacher_counts_among_what_accuracy_depends_on(record: SearchRecord) -> None:
    many = made_up_search(60, teachers=TEACHERS)
    assert TEACHER in importances(many, 1)[0].shares
    assert TEACHER not in importances(made_up_search(60), 1)[0].shares


# --- the picture


def drawn(record: SearchRecord) -> Figure:
    figure = accuracy_by_teacher(record)
    assert figure is not None
    return figure


def test_the_picture_has_a_dot_for_each_trial_and_a_ring_for_each_teachers_best(
    record: SearchRecord,
) -> None:
    axes = drawn(record).axes[0]
    rings = [each for each in axes.collections if each.get_gid() == "best"]
    dots = [each for each in axes.collections if each.get_gid() in ("trial", "published")]
    assert len(dots) == sum(bool(record.teacher_of(trial)) for trial in record.trials)
    best = [100 * (taught_by(record, teacher).score or 0.0) for teacher in TEACHERS]
    assert [float(ring.get_offsets()[0][1]) for ring in rings] == pytest.approx(best)
    texts = {text.get_text() for text in axes.texts}
    assert {f"{name}: {score:.2f}" for name, score in zip(TEACHERS, best, strict=True)} <= texts
    left, right = (float(ring.get_offsets()[0][0]) for ring in rings)
    assert left < right, "the better teacher stands on the right"


def test_there_is_no_picture_without_several_teachers(
    record: SearchRecord, alone: SearchRecord
) -> None:
    assert accuracy_by_teacher(alone) is None
    controls = tuple(trial for trial in record.trials if trial.is_control)
    assert accuracy_by_teacher(record.model_copy(update={"trials": controls})) is None
    unknown = record.model_copy(update={"other_teachers": {}})
    assert accuracy_by_teacher(unknown) is None


def test_many_trials_and_equal_teachers_can_be_drawn() -> None:
    teachers = ("resnet20", "resnet56", "wrn_40_2", "vgg13", "resnet110")
    many = made_up_search(260, teachers=teachers, students=("resnet8", "vgg8"))
    equal = {
        label: ready.model_copy(update={"metrics": many.teacher_metrics})
        for label, ready in many.other_teachers.items()
    }
    many = many.model_copy(update={"other_teachers": equal})
    axes = drawn(many).axes[0]
    rings = [each for each in axes.collections if each.get_gid() == "best"]
    places = sorted(float(ring.get_offsets()[0][0]) for ring in rings)
    assert all(right - left > 0.04 for left, right in pairwise(places))
    assert len(places) == len(teachers)
    for drawing in DRAWINGS.values():
        png(drawing, many)


def test_places_that_are_too_near_move_apart_and_keep_their_order_and_middle() -> None:
    assert spread([0.9, 0.1, 0.5], 0.1) == [0.9, 0.1, 0.5]
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0.6, 0.5, 0.1], 0.2) == pytest.approx([0.65, 0.45, 0.1])
    moved = spread([0.5, 0.52, 0.54, 0.71], 0.2)
    assert [later - one for one, later in pairwise(moved)] == pytest.approx([0.2] * 3)
    assert sum(moved) == pytest.approx(0.5 + 0.52 + 0.54 + 0.71)
