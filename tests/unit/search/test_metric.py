"""A search that ranks by another metric than the accuracy: every place that ranks follows it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from kdcore.data.image_data import ImageData
from kdcore.training.evaluation import Evaluation
from kdcore.training.report import EpochReport
from search.errors import ExperimentError, SearchError
from search.experiment.space.point import IS_CONTROL, NUMBER
from search.experiment.space.trial_config import trial_config
from search.export.choice import Limits, candidates, pick
from search.export.class_table import CONFUSION, class_section
from search.export.model_card import _spread
from search.leaderboard.comparison import compare, comparison_table
from search.leaderboard.formats import as_markdown
from search.leaderboard.progress import how_far
from search.leaderboard.ranking import by_test_accuracy, leaderboard, rank
from search.leaderboard.tables import confirmed_table, leaderboard_table
from search.record.live_record import LiveRecord
from search.record.record import METRIC, ConfirmationRun, Confirmed, SearchRecord, TrialRecord
from search.report.files import _table
from search.report.plots.confusion import confusion_matrix
from search.report.plots.drawings import DRAWINGS, draw, save_confusion
from search.report.summary import summary
from search.session.live_display import LiveDisplay
from search.session.recorder import Recorder
from search.session.retraining.retraining import _outcome
from search.session.trial import as_result
from search.stopping.replay import replay, replay_table
from tests.synthetic import by_balanced_accuracy, confirmed_of, finished_search, made_up_search
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
        return confirmed_of(record.trials[number], runs)

    control, kd = confirmed(0, 0.5, 0.6, 0.55), confirmed(1, 0.7, 0.9, 0.75)
    again = record.model_copy(update={"confirmed": (control, kd)})
    assert [each.label for each in by_test_accuracy(again.confirmed)] == ["1", "0"]
    gain = again.confirmed_gain(kd)
    assert gain is not None
    assert gain.mean == pytest.approx((0.2 + 0.3 + 0.2) / 3)
    assert candidates(again)[0].seed == 1
    text = text_of(confirmed_table(again))
    head = next(line for line in text.splitlines() if "objective" in line)
    columns = ["searched balanced %", "held-out balanced %", "test balanced %", "test %"]
    places = [head.index(column) for column in columns]
    assert places == sorted(places)
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["1"]]
    assert "70.00" in line  # what it was in the search
    assert "78.33 ± 10.41" in line
    assert "91.17 ± 1.04" in line
    for board in (text_of(leaderboard_table(again)), as_markdown(again, leaderboard(again))):
        assert "test balanced %" in board
        assert "78.33 ± 10.41" in board
    written = summary(again)
    assert "reaches **78.33 ± 10.41 %** balanced accuracy on the test split" in written
    assert _outcome(again, kd.runs[0]) == "held-out 70.00 %, test 70.00 % balanced accuracy"
    assert "| 78.33 ± 10.41 | 91.17 ± 1.04 |" in "\n".join(_spread(again, candidates(again)[0]))


def all_words(figure: Figure) -> str:
    """Every text of a picture, its ticks left out."""
    texts = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        texts += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")]
        texts += [label.get_text() for label in axes.get_xticklabels()]
        texts += [text.get_text() for text in axes.texts]
    return " ".join(texts).replace("\n", " ")


def test_every_picture_shows_the_metric_under_its_name() -> None:
    plain = made_up_search(20, students=("resnet8", "vgg8"), methods=("none", "kd"))
    by_metric = by_balanced_accuracy(plain)
    assert [t.number for t in rank(by_metric.trials)] != [t.number for t in rank(plain.trials)]
    named = {
        "accuracy_by_method": "% balanced accuracy",
        "learning_curves": "best held-out balanced accuracy so far",
        "accuracy_against_cost": "Balanced accuracy against cost",
        "accuracy_by_setting": "Balanced accuracy against each",
        "importance": "What the balanced accuracy depends on",
        "parallel_coordinates": "Settings and balanced accuracy",
    }
    assert named.keys() == DRAWINGS.keys() - {"confusion", "accuracy_by_teacher"}
    for name, title in named.items():
        figure, usual = draw(name, by_metric), draw(name, plain)
        assert figure is not None
        assert usual is not None
        text = all_words(figure)
        assert title in text
        if name != "importance":
            assert "held-out balanced accuracy, %" in text
        assert "held-out accuracy" not in text
        assert "balanced" not in all_words(usual)
        if name in ("accuracy_by_method", "learning_curves", "accuracy_against_cost"):
            assert "teacher 87.00" in text
            assert "teacher 96.80" in all_words(usual)


def test_pictures_draw_the_scores_of_the_trials() -> None:
    record = by_balanced_accuracy(made_up_search(30, methods=("none", "kd")))
    scores = sorted(100 * (trial.score or 0.0) for trial in record.trials)
    figure = draw("learning_curves", record)
    assert figure is not None
    ends = [
        float(line.get_ydata()[-1])  # type: ignore[index, arg-type]
        for line in figure.axes[0].lines
        if line.get_gid() == "curve"
    ]
    assert sorted(ends) == pytest.approx(scores)
    figure = draw("accuracy_by_method", record)
    assert figure is not None
    (axes,) = figure.axes
    xs = [x for dots in axes.collections for x, _ in dots.get_offsets()]  # type: ignore[union-attr]
    assert sorted(xs) == pytest.approx(scores)
    settings = draw("accuracy_by_setting", record)
    assert settings is not None
    kd = sorted(100 * (t.score or 0.0) for t in record.trials if t.methods == "kd")
    ys = [y for dots in settings.axes[0].collections for _, y in dots.get_offsets()]  # type: ignore[union-attr]
    assert sorted(ys) == pytest.approx(kd)
    costs = draw("accuracy_against_cost", record)
    assert costs is not None
    ended = sorted(100 * (t.score or 0.0) for t in record.trials if t.state == "finished")
    (dots,) = [each for each in costs.axes[0].collections if each.get_gid() == "trial"]
    assert sorted(y for _, y in dots.get_offsets()) == pytest.approx(ended)  # type: ignore[union-attr]
    lines = draw("parallel_coordinates", record)
    assert lines is not None
    shown = {text.get_text() for text in lines.axes[0].texts}
    assert {f"{kd[0]:.2f}", f"{kd[-1]:.2f}"} <= shown


def test_words_of_a_search_say_the_metric(record: SearchRecord) -> None:
    text = summary(record)
    assert "reaches **70.00 %** balanced accuracy on the held-out images" in text
    assert "Without distillation it reaches 60.00 %, so the gain is +10.00" in text
    assert "The teacher resnet20 reaches 80.00 %; the student closes 50 % of the gap" in text
    table = json.loads(_table(record))
    assert "balanced %" in table["columns"]
    assert {len(row) for row in table["data"]} == {len(table["columns"])}
    assert how_far(record).endswith("best 70.00 % balanced accuracy (trial 1)")
    outcomes = replay(record, [], slots=1)
    assert outcomes[0].best_accuracy == 0.70
    assert "held-out balanced %" in text_of(replay_table(record, outcomes))
    console = Console(width=200)
    with console.capture() as capture:
        display = LiveDisplay(console)
        display.search_started(LiveRecord(record))
        display.trial_ended(record.trials[1], LiveRecord(record))
    assert "epochs: held-out 70.00 % balanced accuracy, kd" in capture.get()


def test_searches_are_compared_by_their_metric_and_by_accuracy_where_they_differ(
    record: SearchRecord,
) -> None:
    other = record.model_copy(update={"name": "task-2"})
    rows = {row.methods: row for row in compare(record, other)}
    kd = rows["kd"].first
    assert kd is not None
    assert kd.number == 1
    text = text_of(comparison_table(record, other))
    assert "best held-out balanced accuracy, %: task-1 and task-2" in text
    assert "80.00" in text  # the teacher
    assert "70.00" in text
    plain = finished_search(
        [trial.model_copy(update={"scores": ()}) for trial in record.trials], name="task-2"
    )
    rows = {row.methods: row for row in compare(record, plain)}
    assert [each and each.number for each in (rows["kd"].first, rows["kd"].second)] == [2, 2]
    assert rows["kd"].difference == 0.0
    text = " ".join(text_of(comparison_table(record, plain)).split())
    assert "best held-out %: task-1" in text
    assert (
        "task-1 ranks by balanced accuracy, task-2 ranks by accuracy; they are compared by" in text
    )
    assert "99.00" in text


def test_min_accuracy_limits_the_accuracy_and_the_metric_chooses_among_the_rest(
    record: SearchRecord,
) -> None:
    assert pick(record, Limits()).trial == 1  # balanced 0.70, accuracy 0.91
    assert pick(record, Limits(accuracy=0.91)).trial == 1
    assert pick(record, Limits(accuracy=0.915)).trial == 0  # balanced 0.60, accuracy 0.92
    assert pick(record, Limits(accuracy=0.95)).trial == 2
    with pytest.raises(SearchError, match=r"a held-out accuracy of 99.00 %, but --min-accuracy is"):
        pick(record, Limits(accuracy=0.995))


def test_an_epochs_score_is_added_to_the_log_and_not_all_written_again() -> None:
    whole = by_balanced_accuracy(made_up_search(3, grace_epochs=None))
    live = LiveRecord(whole.model_copy(update={"trials": ()}))
    trial = whole.trials[1]
    for epoch in range(1, 31):
        done = {"accuracies": trial.accuracies[:epoch], "scores": trial.scores[:epoch]}
        live.put(trial.model_copy(update=done))
        (change,) = map(json.loads, live.changes())
        if epoch > 1:
            assert change["+scores"] == [trial.scores[epoch - 1]]
            assert change["+accuracies"] == [trial.accuracies[epoch - 1]]
            assert change.keys().isdisjoint({"scores", "accuracies"})


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
        axes, _ = confusion_matrix(found, names).axes
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
