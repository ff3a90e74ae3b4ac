"""What the best student does with each class: measured at a search's end, kept, and shown."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from search.errors import LostSearchError, SearchError
from search.experiment.schema import CONTROL
from search.export.choice import Candidate, candidates
from search.record.class_results import (
    ALL_CLASSES,
    WORST_CLASSES,
    StudentClasses,
    class_table,
)
from search.record.live_record import LiveRecord
from search.record.record import ConfirmationRun, SearchRecord
from search.report.files import write_report
from search.report.plots.confusion import confusion
from search.report.summary import summary
from search.session import session as sessions
from search.session.search import Plots
from search.session.session import Session
from tests.synthetic import confirmed_of, made_up_classes, made_up_evaluation, made_up_search


def test_what_is_kept_of_few_classes_is_everything_and_of_many_the_worst() -> None:
    few, found = made_up_classes(10), made_up_evaluation(10)
    assert [each.support for each in few.classes] == found.confusion.sum(1).tolist()
    assert few.classes[-1].recall is None
    assert {(row, column): count for row, column, count in few.mistakes} == {
        (row, column): int(found.confusion[row, column])
        for row, column in found.confusion.nonzero().tolist()
        if row != column
    }
    many, found = made_up_classes(300), made_up_evaluation(300)
    names = [each.name for each in many.classes]
    assert names == sorted(names, key=lambda name: int(name.removeprefix("class ")))
    recalls = {f"class {k}": each.recall for k, each in enumerate(found.classes())}
    worst = sorted(each for each in recalls.values() if each is not None)[:WORST_CLASSES]
    kept = sorted(each.recall for each in many.classes if each.recall is not None)
    assert kept[:WORST_CLASSES] == worst
    mistakes = found.confusion.clone().fill_diagonal_(0)
    counts = [count for _, _, count in many.mistakes]
    assert counts == mistakes.flatten().sort(descending=True).values[:20].tolist()
    for row, column, count in many.mistakes:
        there = [int(names[place].removeprefix("class ")) for place in (row, column)]
        assert mistakes[*there] == count
    assert len(many.model_dump_json()) < 10_000
    table = class_table(many.classes, WORST_CLASSES).splitlines()[2:]
    assert [line.split(" | ")[2] for line in table] == [f"{100 * each:.2f}" for each in worst]


def with_classes(found: StudentClasses | None, **changes: Any) -> SearchRecord:
    return made_up_search(12, **changes).model_copy(update={"by_class": found})


def test_the_summary_has_the_table_and_says_whose_it_is() -> None:
    assert "by class" not in summary(with_classes(None)).lower()
    text = summary(with_classes(made_up_classes(10)))
    assert "**By class, trial 5.** On the 3,000 held-out images. Support is" in text
    assert text.count("| class ") == 10
    assert "have the lowest recall" not in text
    control = made_up_classes(10, objective=CONTROL, seed=7)
    assert "**By class, trial 5 with seed 7 (the control).**" in summary(with_classes(control))
    published = made_up_classes(10, label="kd-resnet8", trial=None)
    assert "**By class, kd-resnet8.**" in summary(with_classes(published))
    long = "a name as long as that of a bird, with its genus and species, "
    found = made_up_classes(300)
    named = [each.model_copy(update={"name": long + each.name}) for each in found.classes]
    record = made_up_search(300, methods=("none", "at", "crd", "dkd", "fitnet"))
    record = record.model_copy(
        update={"by_class": found.model_copy(update={"classes": tuple(named)})}
    )
    text = summary(record)
    assert text.count("| a name as long as") == WORST_CLASSES
    assert "Of 300 classes these have the lowest recall" in text
    assert len(text) < 7000


def test_the_picture_is_the_matrix_and_of_many_classes_the_most_frequent_mistakes() -> None:
    assert confusion(with_classes(None)) is None
    for number in (10, ALL_CLASSES):
        figure = confusion(with_classes(made_up_classes(number)))
        assert figure is not None
        (image,) = figure.axes[0].images
        counts = made_up_evaluation(number).confusion.double()
        shares = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
        np.testing.assert_allclose(np.ma.filled(image.get_array(), 0.0), shares.numpy())
        assert figure.texts[0].get_text() == "What trial 5 takes for what"
        assert figure.texts[1].get_text().startswith("3,000 held-out images;")
    found = made_up_classes(ALL_CLASSES + 1, objective=CONTROL)
    figure = confusion(with_classes(found))
    assert figure is not None
    assert figure.texts[0].get_text() == "The most frequent mistakes of trial 5 (the control)"
    axes = figure.axes[0]
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == [count for _, _, count in found.mistakes]
    row, column, _ = found.mistakes[0]
    first = f"{found.classes[row].name} for {found.classes[column].name}"
    assert axes.get_yticklabels()[0].get_text() == first
    perfect = found.model_copy(update={"mistakes": ()})
    assert confusion(with_classes(perfect)) is None
    with pytest.raises(SearchError, match="made-up-1 has no results by class; they are measured"):
        Plots(with_classes(None)).confusion()


def test_a_picture_of_before_does_not_stay_in_the_report(tmp_path: Path) -> None:
    write_report(with_classes(made_up_classes(10)), tmp_path)
    assert (tmp_path / "7_confusion.png").read_bytes().startswith(b"\x89PNG")
    write_report(with_classes(None), tmp_path)
    assert not (tmp_path / "7_confusion.png").exists()


def test_the_record_is_told_of_it_once_and_records_of_before_open() -> None:
    before = made_up_search(6)
    content = json.loads(before.model_dump_json())
    del content["by_class"]
    assert SearchRecord.model_validate_json(json.dumps(content)).by_class is None
    live = LiveRecord(before)
    live.update(by_class=made_up_classes(10))
    (told,) = live.changes()
    assert json.loads(told)["search"].keys() == {"by_class"}
    live.update(seconds=2.0)
    live.put(before.trials[0].model_copy(update={"train_seconds": 9.0}))
    assert not any("by_class" in change for change in live.changes())
    again = SearchRecord.model_validate_json(live.record.model_dump_json())
    assert again.by_class == made_up_classes(10)


class _Ended:
    """What `Session._measure_winner` reads of a session whose trials have ended."""

    def __init__(self, record: SearchRecord) -> None:
        self._search = LiveRecord(record)
        self._storage, self._write, self._progress = Mock(), Mock(), Mock()

    def measure(self) -> StudentClasses | None:
        Session._measure_winner(self)  # type: ignore[arg-type]
        return self._search.head.by_class

    @property
    def said(self) -> list[str]:
        return [call.args[0] for call in self._progress.say.call_args_list]


def test_the_winner_is_measured_once_and_a_new_one_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Candidate] = []

    def measured(picked: Candidate, *others: object) -> StudentClasses:
        asked.append(picked)
        return made_up_classes(
            10, label=picked.label, checkpoint=picked.checkpoint, epoch=picked.best_epoch
        )

    monkeypatch.setattr(sessions, "classes_of", measured)
    record = made_up_search(12)
    first = candidates(record)[0]
    ended = _Ended(record)
    found = ended.measure()
    assert found is not None
    assert found.label == first.label
    assert ended.measure() == found
    assert asked == [first]
    # A resumed search has a better trial, then a student is confirmed.
    better = record.trials[0].model_copy(
        update={"number": 12, "heldout_accuracy": 0.999, "checkpoint": "new"}
    )
    extended = ended._search.record.model_copy(update={"trials": (*record.trials, better)})
    again = _Ended(extended)
    assert (found := again.measure()) is not None
    assert (found.label, found.checkpoint) == ("12", "new")
    runs = [
        ConfirmationRun(
            seed=seed,
            heldout_accuracy=0.9 + seed / 100,
            heldout_loss=1.0,
            best_epoch=2,
            test_accuracy=0.9,
            checkpoint=f"seed{seed}",
        )
        for seed in (1, 2)
    ]
    confirmed = confirmed_of(record.trials[1], runs)
    whole = again._search.record.model_copy(update={"confirmed": (confirmed,)})
    assert (found := _Ended(whole).measure()) is not None
    assert (found.label, found.checkpoint) == ("1", "seed2")
    assert len(asked) == 3
    # Nothing has finished, the search was cut off, or it is a reproduction.
    for changes in ({"trials": ()}, {"state": "interrupted"}, {"reproduces": "a pair"}):
        assert _Ended(record.model_copy(update=changes)).measure() is None
    assert len(asked) == 3


def test_a_failure_is_said_in_a_line_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = SearchError("the checkpoint of trial 1 is missing\nand more")
    cases = {
        "missing": RayTaskError("measure_classes", "traceback", gone),
        "no room": TimeoutError("the cluster had no room"),
        "stopped; ": KeyboardInterrupt(),
    }
    for words, error in cases.items():
        monkeypatch.setattr(sessions, "classes_of", Mock(side_effect=error))
        ended = _Ended(with_classes(made_up_classes(10)))  # of another student
        assert ended.measure() is None
        (line,) = ended.said
        assert words in line
        assert "the report has no table of classes" in line
        assert "\n" not in line
        assert ended._search.head.state == "finished"
    monkeypatch.setattr(sessions, "classes_of", Mock(side_effect=LostSearchError("lost")))
    with pytest.raises(LostSearchError):
        _Ended(made_up_search(12)).measure()


def test_a_cluster_without_room_keeps_no_search_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from search.session import winner

    waited: list[int] = []
    task = SimpleNamespace(options=lambda **resources: Mock())
    fake = Mock(remote=lambda function: task, wait=lambda tasks, timeout: ([], tasks))
    monkeypatch.setattr(winner, "ray", fake)
    times = iter(range(0, 10_000, 600))
    monkeypatch.setattr(winner.time, "monotonic", lambda: next(times))
    record = made_up_search(4)
    with pytest.raises(TimeoutError, match="had no room"):
        winner.classes_of(candidates(record)[0], record, Mock(uri="x"), lambda: waited.append(1))
    assert len(waited) == 3
    fake.cancel.assert_called_once()
