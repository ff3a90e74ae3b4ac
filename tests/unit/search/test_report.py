"""A search's summary, and the process that writes the report."""

import json
from pathlib import Path

import pytest

from search.leaderboard.teacher_lead import gap_closed, heldout_images
from search.record.live_record import LiveRecord
from search.record.record import ConfirmationRun, SearchRecord
from search.report.files import write_report
from search.report.reporter import Reporter
from search.report.summary import SUMMARY, TABLE, summary
from search.report.time_by_part import time_table
from tests.synthetic import confirmed_of, made_up_search


def with_best(record: SearchRecord, accuracy: float) -> SearchRecord:
    """The search with one more trial, the best."""
    best = record.trials[1].model_copy(update={"number": 99, "heldout_accuracy": accuracy})
    return record.model_copy(update={"trials": (*record.trials, best)})


def test_the_summary_tells_best_control_teacher_gap_cost_and_what_was_stopped() -> None:
    record = with_best(made_up_search(24), 0.98)
    control = record.trials[0].heldout_accuracy
    assert control is not None
    text = summary(record)
    assert "reaches **98.00 %** on the held-out images of digits (trial 99)" in text
    assert f"Without distillation it reaches {100 * control:.2f} %" in text
    assert f"the gain is +{100 * (0.98 - control):.2f} percentage points" in text
    assert "The teacher resnet20 reaches 96.80 %" in text
    assert f"closes {100 * (0.98 - control) / (0.968 - control):.0f} % of the gap" in text
    stopped = [trial for trial in record.trials if trial.state == "stopped"]
    saved = sum(trial.epochs - trial.epochs_done for trial in stopped)
    assert f"{len(stopped)} stopped" in text
    assert f"saved {saved} of 750 epochs" in text
    assert "0.5 h, 1 CPU-hours" in text
    assert "| 1&nbsp;&nbsp; | 99&nbsp;&nbsp; | kd(" in text


def test_the_summary_tells_by_student_where_the_time_of_an_epoch_went() -> None:
    record = made_up_search(12)
    assert "seconds of an epoch" not in summary(record)
    times = [
        ("resnet8", 1, {"decoding": 6.0, "student": 2.0}),
        ("resnet8", 3, {"decoding": 2.0, "student": 4.0, "teacher": 2.0}),
        ("vgg8", 10, {"student": 30.0, "augmenting": 10.0}),
    ]
    trials = [
        record.trials[number].model_copy(
            update={"student": student, "epochs_done": epochs, "seconds_by_part": seconds}
        )
        for number, (student, epochs, seconds) in enumerate(times)
    ]
    timed = record.model_copy(update={"trials": (*trials, *record.trials[3:])})
    assert "| vgg8&nbsp;&nbsp; |" in summary(timed)
    table = time_table(timed)
    assert table.splitlines() == [
        "| seconds of an epoch | decoding | augmenting | teacher | student | together |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| vgg8 |  | 1 (25 %) |  | 3 (75 %) | 4 |",
        "| resnet8 | 2 (50 %) |  | 0.5 (12 %) | 1.5 (38 %) | 4 |",
    ]


def test_there_is_no_gap_to_close_with_a_poor_teacher_or_without_a_control() -> None:
    record = made_up_search(12)
    best = record.trials[3]
    poor = record.model_copy(update={"teacher_metrics": {"heldout_accuracy": 0.5}})
    assert gap_closed(poor, best) is None
    assert gap_closed(record.model_copy(update={"trials": record.trials[1:]}), best) is None
    assert gap_closed(record, record.trials[0]) is None


def with_shares(images: int, teacher: int, *right: int) -> SearchRecord:
    """A search whose networks classify so many held-out images correctly; the first trial is the
    control."""
    record = made_up_search(len(right), methods=("none", "kd"), grace_epochs=None)
    trials = tuple(
        trial.model_copy(update={"heldout_accuracy": count / images})
        for trial, count in zip(record.trials, right, strict=True)
    )
    metrics = {"heldout_accuracy": teacher / images}
    return record.model_copy(update={"trials": trials, "teacher_metrics": metrics})


def test_a_gap_within_noise_is_called_that_and_no_share_of_it_closed() -> None:
    small = with_shares(575, 555, 554, 558, 561)  # 0.17 points, on few images
    assert gap_closed(small, small.trials[2]) is None
    assert "The teacher resnet20 reaches 96.52 %, which differs from the control by no more" in (
        summary(small)
    )
    assert "of the gap" not in summary(small)
    large = with_shares(575_000, 555_001, 554_003, 558_000, 561_000)
    assert gap_closed(large, large.trials[2]) == pytest.approx(6997 / 998)
    assert "closes 701 % of the gap" in summary(large)
    assert "noise" not in summary(large)
    below = with_shares(575_000, 400_001, 554_003, 558_000, 561_000)
    assert gap_closed(below, below.trials[2]) is None
    assert "noise" not in summary(below)


def test_fresh_seeds_that_spread_more_than_images_make_the_noise() -> None:
    record = with_shares(575_000, 555_001, 554_003, 558_000, 561_000)
    runs = tuple(
        ConfirmationRun(seed=seed, heldout_accuracy=share, test_accuracy=share)
        for seed, share in enumerate((0.962, 0.966), start=1)
    )
    control = record.trials[0]
    again = confirmed_of(control, runs)
    assert gap_closed(record, record.trials[2]) is not None
    record = record.model_copy(update={"confirmed": (again,)})
    assert gap_closed(record, record.trials[2]) is None


@pytest.mark.parametrize("images", [144, 575, 5_000, 50_000, 1_281_167])
def test_accuracies_tell_how_many_images_are_held_out(images: int) -> None:
    record = with_shares(images, images - 3, images - 10, images - 9, images - 8)
    assert heldout_images(record) == images
    assert images % heldout_images(with_shares(images, images - 4, images - 8)) == 0


def test_a_search_without_a_finished_control_or_any_result_has_a_summary() -> None:
    record = made_up_search(12)
    assert "the gain is not known" in summary(
        record.model_copy(update={"trials": record.trials[1:]})
    )
    begun = record.model_copy(update={"trials": (), "state": "running"})
    assert "Still running" in summary(begun)
    assert "none has started" in summary(begun)


def test_the_summary_of_a_large_search_fits_into_a_description() -> None:
    students = ("resnet8", "vgg8", "mobilenetv2")
    methods = ("none", "at", "crd", "dkd", "fitnet")
    record = made_up_search(300, methods=methods, students=students)
    assert len(summary(record)) < 7000
    assert "show all 300 trials" in summary(record)


def test_a_report_has_summary_table_and_pictures(tmp_path: Path) -> None:
    record = made_up_search(12)
    write_report(record, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {SUMMARY, TABLE, "1_accuracy_by_method.png", "2_learning_curves.png"} <= names
    assert all(name.endswith((".png", ".md", ".json")) for name in names)
    table = json.loads((tmp_path / TABLE).read_text())
    assert len(table["data"]) == 13
    assert {len(row) for row in table["data"]} == {len(table["columns"])}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_report(record, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_picture_that_cannot_be_drawn_is_told_of_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(record: SearchRecord) -> None:
        raise ZeroDivisionError("no such luck")

    from search.report.plots import drawings

    drawings = {"broken": broken, "curves": drawings.learning_curves}
    monkeypatch.setattr("search.report.plots.drawings.DRAWINGS", drawings)
    write_report(made_up_search(6), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {SUMMARY, TABLE, "2_curves.png"}
    assert "no such luck" in capsys.readouterr().err


def test_reports_come_once_a_minute_from_another_process_and_once_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: list[int] = []
    folder = tmp_path / "report"
    reporter = Reporter(folder, lambda: ready.append(1))
    record = made_up_search(4, epochs=2, grace_epochs=None)
    for _ in range(100):
        reporter.update(LiveRecord(record))  # the first minute is not over
    assert not folder.exists()
    monkeypatch.setattr("search.report.reporter._INTERVAL_SECONDS", 0.0)
    reporter.update(LiveRecord(record))
    first = reporter._process
    assert first is not None
    assert not ready
    monkeypatch.undo()
    reporter.finish(record)
    assert (folder / SUMMARY).read_text() == summary(record)
    assert len(ready) == 1
    assert first.returncode is not None
    assert reporter._process is None


def test_a_search_that_never_began_has_no_report(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "report", lambda: None)
    reporter.finish(made_up_search(3).model_copy(update={"trials": ()}))
    assert not list(tmp_path.iterdir())


def test_fresh_seeds_come_first_in_the_summary() -> None:
    record = made_up_search(24)
    accuracies = {0: (0.90, 0.92), 5: (0.95, 0.96)}
    confirmed = tuple(
        confirmed_of(
            record.trials[number],
            (
                ConfirmationRun(seed=seed, test_accuracy=accuracy)
                for seed, accuracy in enumerate(values)
            ),
        )
        for number, values in accuracies.items()
    )
    text = summary(record.model_copy(update={"confirmed": confirmed}))
    assert text.startswith("Trained again with 2 fresh seeds")
    assert "reaches **95.50 ± 0.71 %** on the test split" in text
    assert "in percentage points: +4.50 [" in text
    assert "Winner's curse" in text
