"""Ranks, gains and forms of the leaderboard."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from kdcore.networks.cost import NetworkCost
from search.errors import SearchError
from search.leaderboard.formats import as_bytes, leaderboard_frame
from search.leaderboard.progress import how_far
from search.leaderboard.ranking import leaderboard
from search.leaderboard.tables import confirmed_table, leaderboard_table
from search.record.files import read_record
from search.record.record import ConfirmationRun, Confirmed, SearchRecord, TrialRecord
from search.record.storage import Storage, search_storage
from tests.records import write_record
from tests.synthetic import finished_search


def trial(number: int, accuracy: float | None, **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "number": number,
        "student": "resnet8",
        "point": {},
        "objective": f"kd(temperature={number})",
        "state": "finished",
        "epochs_done": 4,
        "epochs": 4,
        "heldout_accuracy": accuracy,
        "heldout_loss": 1.0,
    }
    return TrialRecord(**values | changes)


def record_of(
    *trials: TrialRecord, student: str | list[str] = "resnet8", **changes: Any
) -> SearchRecord:
    values = {
        "teacher": "teachers/x",
        "teacher_metrics": {"heldout_accuracy": 0.99, "heldout_loss": 0.1},
    }
    return finished_search(trials, {"student": student}, **values | changes)


CONTROL = trial(0, 0.9, objective="none")


def test_trials_are_ranked_by_accuracy_then_loss_then_number() -> None:
    record = record_of(
        CONTROL,
        trial(1, None, state="failed", reason="boom"),
        trial(2, 0.95),
        trial(3, 0.95, heldout_loss=0.5),
        trial(4, 0.95),
        trial(5, 0.5, state="stopped", epochs_done=1),
    )
    rows = leaderboard(record)
    assert [row.trial for row in rows] == [None, 3, 2, 4, 0, 5, 1]
    assert [row.rank for row in rows] == [None, 1, 2, 3, 4, 5, None]
    assert rows[-1].status == "failed: boom"
    assert rows[-2].epochs == "1/4"


def test_the_best_epoch_ranks_and_not_the_last() -> None:
    early = trial(1, 0.97, accuracies=(0.9, 0.97, 0.8, 0.7))
    steady = trial(2, 0.95, accuracies=(0.8, 0.9, 0.94, 0.95))
    rows = leaderboard(record_of(CONTROL, steady, early))
    assert [row.trial for row in rows] == [None, 1, 2, 0]


def test_gains_are_over_the_control_and_the_teacher_has_one() -> None:
    rows = leaderboard(record_of(CONTROL, trial(1, 0.95)))
    gains = {row.objective: row.gain for row in rows}
    assert gains["teacher"] == pytest.approx(0.09)
    assert gains["kd(temperature=1)"] == pytest.approx(0.05)
    assert gains["none"] is None


def test_without_a_finished_control_there_is_no_gain() -> None:
    running = CONTROL.model_copy(update={"state": "running", "epochs_done": 1})
    assert all(row.gain is None for row in leaderboard(record_of(running, trial(1, 0.95))))


def test_the_best_of_several_controls_counts() -> None:
    better = CONTROL.model_copy(update={"number": 2, "heldout_accuracy": 0.92})
    rows = leaderboard(record_of(CONTROL, trial(1, 0.95), better))
    assert {row.trial: row.gain for row in rows}[1] == pytest.approx(0.03)


def test_every_form_holds_the_same_rows() -> None:
    record = record_of(CONTROL, trial(1, 0.95), trial(2, None, state="failed"))
    rows = json.loads(as_bytes(record, "json"))
    assert [row["trial"] for row in rows] == [None, 1, 0, 2]
    table = parquet.read_table(io.BytesIO(as_bytes(record, "parquet"))).to_pylist()
    assert table == rows
    lines = list(csv.DictReader(io.StringIO(as_bytes(record, "csv").decode())))
    assert [line["objective"] for line in lines] == [row["objective"] for row in rows]


def test_an_unknown_form_is_told() -> None:
    with pytest.raises(SearchError, match="no format 'parket'; did you mean 'parquet'"):
        as_bytes(record_of(CONTROL), "parket")


def test_a_frame_has_the_columns_of_parquet_and_is_indexed_by_trial() -> None:
    record = record_of(
        CONTROL, trial(1, 0.95), trial(2, None, state="failed"), student_costs={"resnet8": COST}
    )
    frame = leaderboard_frame(record)
    table = parquet.read_table(io.BytesIO(as_bytes(record, "parquet")))
    assert [frame.index.name, *frame.columns] == [
        "trial",
        *table.drop_columns("trial").column_names,
    ]
    assert list(frame.index[1:]) == [1, 0, 2]
    assert frame.loc[1, "gain"] == pytest.approx(0.05)
    assert frame.loc[1, "parameters"] == COST.parameters
    assert frame["rank"].isna().tolist() == [True, False, False, True]
    assert (frame["rank"].dtype, frame["gain"].dtype) == ("Int32", "float64")
    assert list(leaderboard_frame(record, method="none").index) == [0]
    assert leaderboard_frame(record, state="running").empty


def test_filters_leave_rows_out_and_ranks_and_gains_as_they_are() -> None:
    record = record_of(
        CONTROL, trial(1, 0.95), trial(2, 0.97, state="stopped"), trial(3, 0.93, objective="none")
    )
    every = {row.trial: row for row in leaderboard(record)}
    for only in (
        {"method": "kd"},
        {"method": "none"},
        {"state": "finished"},
        {"method": "kd", "state": "finished"},
    ):
        rows = leaderboard(record, **only)
        assert rows == [every[row.trial] for row in rows]
        for row in every.values():
            fits = row.objective.startswith(only.get("method", "")) and row.trial is not None
            assert (row in rows) == (fits and row.status.startswith(only.get("state", "")))
    with pytest.raises(SearchError, match="no method 'kdd'; did you mean 'kd'"):
        leaderboard(record, method="kdd")


def test_a_trial_with_two_methods_has_both() -> None:
    both = trial(1, 0.95, objective="kd(weight=1) + at(weight=2, layers=all)")
    assert both.methods == "kd + at"
    assert [row.trial for row in leaderboard(record_of(CONTROL, both), method="kd")] == [1]


def test_markdown_has_a_line_for_each_row() -> None:
    record = record_of(CONTROL, trial(1, 0.95), trial(2, None, state="failed", reason="a | b"))
    lines = as_bytes(record, "markdown").decode().splitlines()
    assert len(lines) == 2 + 4
    assert lines[2].split(" | ")[2:4] == ["teacher resnet20", "99.00"]
    assert lines[3].split(" | ")[:5] == ["| 1", "1", "kd(temperature=1)", "95.00", "+5.00"]
    assert "a \\| b" in lines[-1]


def test_what_is_searched_of_recipe_and_views_has_a_column_in_every_form() -> None:
    plain = record_of(CONTROL)
    for text in (as_bytes(plain, "markdown").decode(), printed(leaderboard_table(plain))):
        assert "recipe" not in text
    views = {"choices": ["basic", ["pad_crop", "mixup"]]}
    experiment = {
        "data": {"name": "digits", "augmentation": views},
        "training": {
            "epochs": 4,
            "ema_decay": [None, 0.99],
            "weight_decay": {"low": 1e-5, "high": 1},
        },
    }
    chosen = {
        "training.ema_decay": None,
        "training.weight_decay": 0.012345,
        "data.augmentation": "[pad_crop, mixup]",
    }
    words = "ema_decay=null, weight_decay=0.01235, augmentation=[pad_crop, mixup]"
    again = Confirmed(
        label="1",
        role="best",
        trial=1,
        student="resnet8",
        objective="kd",
        point=chosen,
        runs=tuple(
            ConfirmationRun(seed=seed, heldout_accuracy=0.9, test_accuracy=0.9) for seed in (1, 2)
        ),
    )
    trials = CONTROL, trial(1, 0.95, point=chosen)
    record = finished_search(trials, experiment, confirmed=(again,))
    assert SearchRecord.model_validate_json(record.model_dump_json()) == record
    assert [row["recipe"] for row in json.loads(as_bytes(record, "json"))] == [words, ""]
    assert words in as_bytes(record, "markdown").decode()
    assert words in printed(leaderboard_table(record))
    assert words in printed(confirmed_table(record))


def printed(table: Table) -> str:
    """What a wide terminal shows."""
    console = Console(width=300, file=io.StringIO(), force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_table_fits_a_terminal_of_80_columns_and_marks_the_control() -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    long = trial(1, 0.95, objective="fitnet(weight=438.3, relu=False, layers=stage3:stage2)")
    with console.capture() as captured:
        console.print(leaderboard_table(record_of(CONTROL, long)))
    text = captured.get()
    assert "none (control)" in text
    assert "+5.00" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_a_long_table_has_its_head_the_controls_and_how_to_see_all() -> None:
    def shown(trials: int, **options: bool) -> str:
        every = (trial(number, 0.95 - number / 1e4) for number in range(1, trials))
        console = Console(width=120, file=io.StringIO())
        with console.capture() as captured:
            console.print(leaderboard_table(record_of(CONTROL, *every), **options))
        return captured.get()

    def ranks(text: str) -> list[int]:
        return [int(line[:5]) for line in text.splitlines()[2:] if line[:5].strip().isdigit()]

    assert ranks(shown(49)) == [*range(1, 50)]  # and the teacher
    cut = shown(60)
    assert ranks(cut) == [*range(1, 40), 60]
    assert "none (control)" in cut
    assert cut.splitlines()[-1].startswith("20 more rows: --all or --format csv")
    whole = shown(60, whole=True)
    assert ranks(whole) == [*range(1, 61)]
    assert "more rows" not in whole


def test_how_far_a_search_is_names_the_first_of_the_board() -> None:
    record = record_of(
        CONTROL,
        trial(1, None, state="running"),
        trial(2, 0.95),
        trial(3, 0.95, heldout_loss=0.5, state="stopped"),
        trial(4, 0.95, heldout_loss=0.5),
    )
    states = "1 running, 1 stopped, 3 finished of 4"
    assert how_far(record) == f"{states} | best 95.00 % (trial 3)"
    assert how_far(record_of(trial(1, None, state="failed"))) == (
        "0 running, 0 stopped, 0 finished, 1 failed of 4"
    )
    assert how_far(record_of()) == "0 running, 0 stopped, 0 finished of 4"


COST = NetworkCost(77_754, 763_520, 0.32, 2.0, "CPU", 1)


def test_each_students_gain_is_over_its_own_control() -> None:
    record = record_of(
        CONTROL,
        trial(1, 0.7, objective="none", student="resnet14"),
        trial(2, 0.75, student="resnet14"),
        trial(3, 0.89),
        student=["resnet8", "resnet14"],
        student_costs={"resnet14": COST},
    )
    rows = {row.trial: row for row in leaderboard(record)}
    assert rows[2].gain == pytest.approx(0.05)
    assert rows[3].gain == pytest.approx(-0.01)
    assert rows[None].gain == pytest.approx(0.09)  # the teacher's, over the best control
    assert (rows[2].parameters, rows[2].latency_ms) == (77_754, 0.32)
    assert (rows[3].parameters, rows[3].latency_ms) == (None, None)


def test_what_students_cost_is_shown_in_columns_where_there_are_several_else_below() -> None:
    def shown(**changes: Any) -> str:
        console = Console(width=120, file=io.StringIO())
        with console.capture() as captured:
            console.print(
                leaderboard_table(record_of(CONTROL, student_costs={"resnet8": COST}, **changes))
            )
        return captured.get()

    head, *rows = (line for line in shown(student=["resnet8", "resnet14"]).splitlines()[2:])
    columns = " ".join(head.split())
    assert "student objective" in columns
    assert "gain parameters ms epochs" in columns
    assert any("resnet8 " in row and "77,754" in row and "0.32" in row for row in rows)
    alone = shown()
    assert "parameters" not in alone.splitlines()[2]
    assert "student resnet8: 77,754 parameters, 763,520 multiply-adds, 0.32 ms an image" in alone


def test_a_record_survives_its_storage(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    written = write_record(storage, record_of(CONTROL, student_costs={"resnet8": COST}))
    assert read_record(storage, "task-1") == written


def test_a_search_that_fell_silent_is_not_shown_as_running(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    running = CONTROL.model_copy(update={"state": "running"})
    record = write_record(storage, record_of(running, trial(1, 0.9), state="running"))
    assert read_record(storage, "task-1").trials[0].state == "running"
    silent = record.model_copy(
        update={"updated": datetime.now(UTC) - timedelta(hours=1), "name": "old"}
    )
    content = silent.model_dump_json().encode()
    search_storage(storage, "old").write("search.json", content)  # as version 0.1.0 wrote it
    read = read_record(storage, "old")
    assert read.state == "interrupted"
    assert [trial.state for trial in read.trials] == ["interrupted", "finished"]


def test_an_unknown_or_damaged_search_is_told(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(ValueError, match="There is none yet"):
        read_record(storage, "task-1")
    write_record(storage, record_of(CONTROL))
    with pytest.raises(ValueError, match="did you mean 'task-1'"):
        read_record(storage, "task1")
    search_storage(storage, "task-1").write("record/000000.000001.json", b"{")
    with pytest.raises(ValueError, match="damaged"):
        read_record(storage, "task-1")
