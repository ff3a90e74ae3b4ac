"""The leaderboard as a saved runs table of MLflow's pages, and the links to a search's pages."""

from search.experiment.space.point import is_number, plain_name
from search.leaderboard.ranking import rank, searches_teacher
from search.record.record import METRIC, SearchRecord
from search.tracking.mlflow_private import run_page, runs_table_page, shared_runs_table

# As many settings as a table has room for on a laptop.
_MOST_SETTINGS = 5


def columns(record: SearchRecord) -> dict[str, int]:
    """The table's columns from left to right, with their widths in pixels.

    Methods differ in their settings, so only settings of the best trials get a column.
    """
    several = len(record.experiment.students) > 1
    return {
        **({f"metrics.`{_ranking(record)}`": 110} if _ranking(record) != METRIC else {}),
        f"metrics.`{METRIC}`": 150,
        "metrics.`gain`": 80,
        "params.`objective`": 300,
        "tags.`state`": 80,
        "metrics.`epochs_done`": 100,
        "params.`student`": 110 if several else 80,
        **({"params.`teacher`": 110} if searches_teacher(record) else {}),
        "metrics.`parameters`": 90,
        "metrics.`latency_ms`": 90,
        **{f"params.`{name}`": 120 for name in _main_settings(record)},
    }


def _ranking(record: SearchRecord) -> str:
    """The metric of MLflow's that trials are ranked by."""
    return METRIC if record.experiment.search.metric == "accuracy" else "best_score"


def _main_settings(record: SearchRecord) -> list[str]:
    """The first numeric settings that one meets going down the leaderboard."""
    names: dict[str, None] = {}
    for trial in rank(record.trials):
        names |= dict.fromkeys(plain_name(k) for k, v in trial.point.items() if is_number(v))
        if len(names) >= _MOST_SETTINGS:
            break
    return list(names)[:_MOST_SETTINGS]


def runs_table(record: SearchRecord) -> tuple[str, str]:
    """The experiment's tag that holds the leaderboard, as key and value."""
    return shared_runs_table(
        record.name,
        title=f"leaderboard of {record.name}",
        created_ms=int(record.started.timestamp() * 1000),
        search_filter=f"tags.`kdsearch.search` = '{record.name}' "
        "and tags.`kdsearch.role` = 'trial'",
        order_by=f"metrics.`{_ranking(record)}`",
        widths=columns(record),
        run_name_width=130 if len(record.experiment.students) == 1 else 170,
    )


def leaderboard_link(base: str, record: SearchRecord | None) -> str:
    """The address of a search's runs table.

    Args:
        base: the server's address, like `http://127.0.0.1:5000`.
        record: the search; without one, or before MLflow knows it, the server's first page.
    """
    if record is None or record.mlflow_experiment_id is None:
        return base
    return runs_table_page(base, record.mlflow_experiment_id, record.name)


def report_link(base: str, record: SearchRecord) -> str:
    """The address of a search's own page, with its summary and pictures.

    Args:
        base: the server's address.
        record: a search that MLflow knows.
    """
    assert record.mlflow_experiment_id is not None
    assert record.mlflow_run_id is not None
    return run_page(base, record.mlflow_experiment_id, record.mlflow_run_id)
