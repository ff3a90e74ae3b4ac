"""A search that ranks by another metric than the accuracy: every place that ranks follows it."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from rich.console import Console

from kdcore.data.image_data import ImageData
from kdcore.training.evaluation import Evaluation
from kdcore.training.report import EpochReport
from search.errors import ExperimentError
from search.experiment.space.point import IS_CONTROL, NUMBER
from search.experiment.space.trial_config import trial_config
from search.export.choice import candidates
from search.export.class_table import CONFUSION, class_section
from search.leaderboard.formats import as_markdown
from search.leaderboard.ranking import by_test_accuracy, leaderboard, rank
from search.leaderboard.tables import confirmed_table, leaderboard_table
from search.record.live_record import LiveRecord
from search.record.record import METRIC, ConfirmationRun, Confirmed, SearchRecord, TrialRecord
from search.report.plots.confusion import confusion, save_confusion
from search.session.recorder import Recorder
from search.session.trial import as_result
from tests.synthetic import finished_search
from tests.unit.search.test_preflight import planned

BALANCED = {"search": {"trials": 4, "metric": "balanced_accuracy"}}
CURVES = {
    0: ("none", (0.50, 0.60), (0.90, 0.92)),
    1: ("kd", (0.70, 0.65), (0.91, 0.93)),
    2: ("kd", (0.55, 0.58), (0.97, 0.99)),
}


def reported(epoch: int, number: int) -> EpochReport:
    """As training by balanced accuracy reports it."""
    _, balanced, accuracies = CURVES[number]
    best = max(range(epoch), key=lambda done: balanced[done])
    return EpochReport(
        epoch=epoch,
        epochs=4,
        train_loss=1.0,
        train_terms={},
        train_accuracy=0.5,
        heldout_accuracy=accuracies[epoch - 1],
        heldout_loss=1.0,
        best_heldout_accuracy=accuracies[best],
        best_epoch=best + 1,
        learning_rate=0.1,
        epoch_seconds=1.0,
        heldout_balanced_accuracy=balanced[epoch - 1],
        best_score=balanced[best],
    )


@pytest.fixture(scope="module")
def record() -> SearchRecord:
    """What the callback makes of the reports of three trials."""
    search = LiveRecord(finished_search((), BALANCED))
    metrics = {"heldout_accuracy": 0.99, "heldout_balanced_accuracy": 0.8, "heldout_loss": 0.1}
    search.update(teacher="teachers/x", teacher_metrics=metrics)
    recorder = Recorder(
        search, Mock(pause=0.0), Mock(), Mock(ids={}), Mock(), Mock(), SimpleNamespace(made=False)
    )
    for number, (method, _, _) in CURVES.items():
        point = {"objective.1": method, **({IS_CONTROL: True} if method == "none" else {})}
        trial: Any = SimpleNamespace(config={**point, NUMBER: number})
        recorder.on_trial_start(0, [], trial)
        for epoch in (1, 2):
            result = as_result(asdict(reported(epoch, number)), saved=epoch)
            recorder.on_trial_result(0, [], trial, result)
            assert result[METRIC] == max(CURVES[number][1][:epoch])
        known = search.trials[number]
        search.put(known.model_copy(update={"state": "finished", "epochs_done": 4}))
    return search.record


def test_trials_are_ranked_and_compared_by_the_metric(record: SearchRecord) -> None:
    assert [trial.number for trial in rank(record.trials)] == [1, 0, 2]
    best, control = record.trials[1], record.trials[0]
    assert (best.best_epoch, best.heldout_accuracy, best.score) == (1, 0.91, 0.70)
    assert best.curve == (0.70, 0.65)
    assert best.accuracies == (0.91, 0.93)
    assert best.heldout_balanced_accuracy == 0.70
    assert record.gain(best) == pytest.approx(0.70 - 0.60)
    assert record.control_of("resnet8") == control
    teacher, first, *_ = leaderboard(record)
    assert (first.trial, first.gain) == (1, record.gain(best))
    assert teacher.gain == pytest.approx(0.8 - 0.6)
    assert candidates(record)[0].label == "1"
    assert trial_config(record.experiment, best.point).metric == "balanced_accuracy"
    again = SearchRecord.model_validate_json(record.model_dump_json())
    assert again.model_dump() == record.model_dump()


def text_of(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_column_is_shown_where_it_is_asked_for_or_classes_are_unequal(
    record: SearchRecord,
) -> None:
    plain = finished_search(
        [trial.model_copy(update={"scores": ()}) for trial in record.trials],
        teacher_metrics={"heldout_accuracy": 0.99, "heldout_loss": 0.1},
    )
    unequal = plain.model_copy(update={"unequal_classes": True})
    for one, shown in ((record, True), (plain, False), (unequal, True)):
        for text in (text_of(leaderboard_table(one)), as_markdown(one, leaderboard(one))):
            assert ("balanced %" in text) == shown
            assert ("70.00" in text) == shown
            assert "top-5" not in text
    # Without the metric, the accuracy ranks.
    assert [trial.number for trial in rank(plain.trials)] == [2, 0, 1]


def test_confirmed_students_are_compared_by_the_metric(record: SearchRecord) -> None:
    def confirmed(number: int, *scores: float) -> Confirmed:
        runs = tuple(
            ConfirmationRun(
                seed=seed,
                heldout_accuracy=0.9 - score / 10,
                heldout_score=score,
                heldout_loss=1.0,
                best_epoch=1,
                test_accuracy=0.99 - score / 10,
                test_score=score,
                checkpoint="x",
            )
            for seed, score in enumerate(scores)
        )
        trial = record.trials[number]
        return Confirmed(
            label=str(number),
            role="control" if trial.is_control else "best",
            trial=number,
            student="resnet8",
            objective=trial.objective,
            point=trial.point,
            runs=runs,
        )

    control, kd = confirmed(0, 0.5, 0.6, 0.55), confirmed(1, 0.7, 0.9, 0.75)
    again = record.model_copy(update={"confirmed": (control, kd)})
    assert [each.label for each in by_test_accuracy(again.confirmed)] == ["1", "0"]
    gain = again.confirmed_gain(kd)
    assert gain is not None
    assert gain.mean == pytest.approx((0.2 + 0.3 + 0.2) / 3)
    assert candidates(again)[0].seed == 1
    text = text_of(confirmed_table(again))
    assert "test balanced %" in text
    assert "78.33" in text


def test_a_record_and_a_report_of_before_still_open() -> None:
    trial = TrialRecord(
        number=0,
        student="resnet8",
        point={},
        objective="kd",
        state="finished",
        epochs=4,
        accuracies=(0.5, 0.9),
        heldout_accuracy=0.9,
    )
    later = {"scores", "heldout_balanced_accuracy", "heldout_top5"}
    before = trial.model_dump(exclude=later)
    assert TrialRecord.model_validate(before) == trial
    assert (trial.score, trial.curve) == (0.9, (0.5, 0.9))
    report = asdict(reported(1, 0))
    for key in ("of_average", "heldout_balanced_accuracy", "heldout_top5", "best_score"):
        del report[key]
    assert as_result(report, saved=0)[METRIC] == report["best_heldout_accuracy"]


def test_top_5_of_few_classes_is_refused_by_check(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        planned(tmp_path, search={"trials": 4, "metric": "top5"}, objective=[["none", "kd"]])
    (line,) = caught.value.lines()
    assert line.startswith(
        "task.yaml: search.metric: metric is 'top5', but the data has 10 classes"
    )
    with pytest.raises(ExperimentError, match=r"search\.metric"):
        planned(tmp_path, search={"trials": 4, "metric": "f1"})


def made_up(num_classes: int) -> tuple[Evaluation, list[str]]:
    torch.manual_seed(0)
    labels = torch.randint(0, num_classes - 1, (20 * num_classes,))
    predictions = torch.where(torch.rand(len(labels)) < 0.8, labels, labels * 0 + 1)
    names = [f"class {number}" for number in range(num_classes)]
    return Evaluation(labels, predictions, num_classes, 1.0, None), names


def test_the_cards_table_has_a_row_for_each_class_or_for_the_worst() -> None:
    found, names = made_up(10)
    lines = "\n".join(class_section(found, names, pictured=True)).splitlines()
    rows = [line for line in lines if line.startswith("| class ")][1:]
    assert len(rows) == 10
    first = found.classes()[0]
    assert first.recall is not None
    assert rows[0] == f"| class 0 | {first.support} | {100 * first.recall:.2f} | 100.00 |"
    assert rows[-1] == "| class 9 | 0 |  |  |"
    assert lines[-1] == f"![Confusion matrix]({CONFUSION})"
    assert CONFUSION not in "".join(class_section(found, names, pictured=False))
    assert class_section(None, names, pictured=True) == []
    many, names = made_up(130)
    text = "\n".join(class_section(many, names, pictured=False))
    worst = min(range(129), key=lambda k: many.classes()[k].recall or 0.0)
    assert f"| class {worst} |" in text
    assert text.count("\n| class ") == 101
    assert "these have the lowest recall" in text


def test_the_confusion_matrix_is_drawn_for_few_and_for_many_classes(tmp_path: Path) -> None:
    for number, texts, ticks in ((10, True, 10), (100, False, 34)):
        found, names = made_up(number)
        axes, _ = confusion(found, names).axes
        assert bool(axes.texts) == texts
        assert len(axes.get_xticks()) == ticks
        (image,) = axes.images
        drawn = torch.tensor(image.get_array().filled(0.0))
        counts = found.confusion.double()
        shares = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
        assert torch.allclose(drawn, shares)
        save_confusion(found, names, tmp_path / CONFUSION)
        assert (tmp_path / CONFUSION).read_bytes().startswith(b"\x89PNG")


def test_unequal_classes_are_noticed(digits: ImageData) -> None:
    assert not digits.has_unequal_classes
    few = (digits.train.labels == 3).nonzero()[:, 0][5:]
    kept = torch.ones(len(digits.train), dtype=torch.bool)
    kept[few] = False
    part: Any = digits.train
    without = replace(part, labels=part.labels[kept])
    assert replace(digits, train=without).has_unequal_classes
