"""The leaderboard in MLflow's pages: a saved view of the runs table, and the link to it.

The pages keep a view as a tag of the experiment. Neither the tag nor its form is documented: both
are what the pages of MLflow 3.17 write themselves.
"""

import json
from collections.abc import Iterable
from urllib.parse import quote

from search.experiment.space.point import is_number, plain_name
from search.leaderboard.ranking import rank
from search.record.record import METRIC, SearchRecord

TAG = "mlflow.sharedViewState."

# As many settings as a table of laptop width has room for.
_MOST_SETTINGS = 5

# The runs table has these always; of the time there is room for the icon of its status only.
_ICON = 46
_RUN_NAME, _CREATED, _DURATION = "attributes.`Run Name`", "runDateAndNestInfo", "duration"


def columns(record: SearchRecord) -> dict[str, int]:
    """The table's columns from left to right, with their widths in pixels.

    A setting has one if the best trials have it, since methods differ in their settings.
    """
    several = len(record.experiment.students) > 1
    settings = _main_settings(record)
    return {
        f"metrics.`{METRIC}`": 150,
        "metrics.`gain`": 80,
        "params.`objective`": 300,
        "tags.`state`": 80,
        "metrics.`epochs_done`": 100,
        "params.`student`": 110 if several else 80,
        "metrics.`parameters`": 90,
        "metrics.`latency_ms`": 90,
        **{f"params.`{name}`": 120 for name in settings},
    }


def _main_settings(record: SearchRecord) -> list[str]:
    """The numbers among the settings of the best trials."""
    names = (
        plain_name(key)
        for trial in rank(record.trials)
        for key, value in trial.point.items()
        if is_number(value)
    )
    return list(_first(names, _MOST_SETTINGS))


def _first(names: Iterable[str], count: int) -> Iterable[str]:
    """The first so many different names."""
    seen: dict[str, None] = {}
    for name in names:
        seen[name] = None
        if len(seen) == count:
            break
    return seen


def saved_view(record: SearchRecord) -> tuple[str, str]:
    """The experiment's tag that holds the leaderboard, as key and value."""
    widths = columns(record)
    state = {
        "searchFilter": f"tags.`kdsearch.search` = '{record.name}' "
        "and tags.`kdsearch.role` = 'trial'",
        "orderByKey": f"metrics.`{METRIC}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(widths),
        "columnOrder": [_RUN_NAME, *widths, _DURATION, _CREATED],
        "columnWidths": {
            _RUN_NAME: 130 if len(record.experiment.students) == 1 else 170,
            **widths,
            _DURATION: 80,
            _CREATED: _ICON,
        },
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "viewMaximized": True,
        "runListHidden": False,
        "isAccordionReordered": False,
        "groupBy": None,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
    }
    created = int(record.started.timestamp() * 1000)
    envelope = {
        "name": f"leaderboard of {record.name}",
        "createdAt": created,
        "updatedAt": created,
        "state": json.dumps(state),
    }
    return TAG + record.name, json.dumps(envelope)


def leaderboard_link(base: str, record: SearchRecord | None) -> str:
    """The address of a search's saved view.

    Args:
        base: of the server, like `http://127.0.0.1:5000`.
        record: the search; without one, or without its experiment's id, the server's first page.
    """
    if record is None or record.mlflow_experiment_id is None:
        return base
    return _page(base, record, "") + f"&viewStateShareKey={quote(record.name)}"


def report_link(base: str, record: SearchRecord) -> str:
    """The address of a search's own page, with its summary and pictures."""
    return _page(base, record, f"/{record.mlflow_run_id}")


def _page(base: str, record: SearchRecord, run: str) -> str:
    # A browser that is new to MLflow would show its pages for language models.
    workflow = "workflowType=machine_learning"
    return f"{base}/#/experiments/{record.mlflow_experiment_id}/runs{run}?{workflow}"
