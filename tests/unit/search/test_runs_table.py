"""The leaderboard in MLflow's runs table."""

import json

from search.record.record import SearchRecord
from search.tracking.runs_table import columns, leaderboard_link, report_link, runs_table
from tests.synthetic import made_up_search


def state_of(record: SearchRecord) -> dict[str, object]:
    _, value = runs_table(record)
    state: dict[str, object] = json.loads(json.loads(value)["state"])
    return state


def test_the_table_shows_one_searchs_trials_with_the_best_on_top() -> None:
    state = state_of(made_up_search(12))
    assert state["searchFilter"] == (
        "tags.`kdsearch.search` = 'made-up-1' and tags.`kdsearch.role` = 'trial'"
    )
    assert state["orderByKey"] == "metrics.`best_heldout_accuracy`"
    assert state["orderByAsc"] is False


def test_settings_have_columns_if_the_leaders_have_them() -> None:
    record = made_up_search(30, methods=("none", "kd", "rkd"))
    best = max(record.trials, key=lambda trial: trial.heldout_accuracy or 0.0)
    shown = [name.split("`")[1] for name in columns(record) if "." in name.split("`")[1]]
    numbers = [key for key, value in best.point.items() if isinstance(value, float)]
    assert shown[: len(numbers)] == numbers
    assert len(shown) <= 5
    begun = record.model_copy(update={"trials": ()})
    assert set(columns(begun)) < set(columns(record))


def test_a_yes_or_no_is_no_number_to_sort_by() -> None:
    assert "params.`kd.standardize`" not in columns(made_up_search(9, methods=("none", "kd")))


def test_the_table_fits_into_a_tag_of_mlflow_and_names_each_column_once() -> None:
    students = ("resnet8", "vgg8", "mobilenetv2")
    record = made_up_search(40, students=students, name="x" * 100)
    key, value = runs_table(record)
    assert len(key) <= 250
    assert len(value) <= 5000
    order = state_of(record)["columnOrder"]
    assert isinstance(order, list)
    assert len(set(order)) == len(order)


def test_links_lead_to_the_table_and_to_the_searchs_page() -> None:
    record = made_up_search(3).model_copy(
        update={"mlflow_experiment_id": "7", "mlflow_run_id": "abc"}
    )
    link = leaderboard_link("http://host:1", record)
    assert link.startswith("http://host:1/#/experiments/7/runs?")
    assert link.endswith("&viewStateShareKey=made-up-1")
    assert report_link("http://host:1", record).startswith(
        "http://host:1/#/experiments/7/runs/abc?"
    )
    unknown = record.model_copy(update={"mlflow_experiment_id": None})
    assert leaderboard_link("http://host:1", unknown) == "http://host:1"
