"""Two searches side by side."""

import io

import pytest
from rich.console import Console

from search.errors import SearchError
from search.leaderboard.comparison import compare, comparison_table
from tests.synthetic import made_up_search


def test_the_best_of_each_student_and_method_are_compared() -> None:
    first = made_up_search(30, methods=("none", "kd", "rkd"), grace_epochs=None)
    second = made_up_search(
        30, methods=("none", "kd"), students=("resnet8", "vgg8"), grace_epochs=None
    )
    rows = {(row.student, row.methods): row for row in compare(first, second)}
    assert rows.keys() == {
        *(("resnet8", "none"), ("resnet8", "kd"), ("resnet8", "rkd")),
        *(("vgg8", "none"), ("vgg8", "kd")),
    }
    for key, row in rows.items():
        for record, trial in ((first, row.first), (second, row.second)):
            ended = [
                t.heldout_accuracy
                for t in record.trials
                if (t.student, t.methods) == key and t.state == "finished"
            ]
            assert (trial and trial.heldout_accuracy) == max(ended, default=None)
    both = rows["resnet8", "kd"]
    assert both.first is not None
    assert both.second is not None
    assert both.difference == (both.second.heldout_accuracy or 0) - (
        both.first.heldout_accuracy or 0
    )
    assert rows["vgg8", "kd"].difference is None


def test_a_method_of_which_nothing_finished_is_marked() -> None:
    record = made_up_search(30, grace_epochs=None)
    stopped = tuple(
        trial.model_copy(update={"state": "stopped"}) if trial.methods == "kd" else trial
        for trial in record.trials
    )
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        console.print(comparison_table(record, record.model_copy(update={"trials": stopped})))
    line = next(line for line in captured.get().splitlines() if line.split()[1:2] == ["kd"])
    assert line.count("*") == 1
    assert "* not finished" in captured.get()


def test_searches_on_different_data_are_refused_but_not_for_their_augmentation() -> None:
    record = made_up_search(6)

    def on(**changes: object) -> object:
        data = record.experiment.data.model_copy(update=changes)
        experiment = record.experiment.model_copy(update={"data": data})
        return record.model_copy(update={"experiment": experiment, "name": "other"})

    with pytest.raises(SearchError, match=r"different data: data\.split_seed 0 and 1;"):
        compare(record, on(split_seed=1))  # type: ignore[arg-type]
    assert compare(record, on(views=3))  # type: ignore[arg-type]
