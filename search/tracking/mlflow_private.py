"""Everything that relies on what MLflow does not promise, as MLflow 3.17 has it.

Tags that only its web pages read, the form of the values that the pages store in them, and the
pages' addresses. `tests/unit/search/test_mlflow_private.py` looks for all of it in the installed
MLflow and says what a new version has changed. Should it change, pages look plainer or a link opens
another page; no run, metric or artifact is lost.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from urllib.parse import quote, urlencode

# A runs table that was saved for sharing is a tag of the experiment: this prefix and a key. A link
# with the key opens it.
RUNS_TABLE_TAG = "mlflow.sharedViewState."
RUNS_TABLE_KEY = "viewStateShareKey"

# The ids of the columns that a runs table always has.
RUN_NAME_COLUMN = "attributes.`Run Name`"
CREATED_COLUMN = "runDateAndNestInfo"
DURATION_COLUMN = "duration"
_STATUS_ICON_WIDTH = 46  # of the time of creation there is room for the icon of the status only
_DURATION_WIDTH = 80

# Without this tag MLflow guesses what an experiment is for, and opens it on the page for language
# models.
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}

# A browser that is new to MLflow shows the pages for language models, unless the address says this.
WORKFLOW = {"workflowType": "machine_learning"}

# A run's tag that lists those of its JSON files that the pages show as tables.
LOGGED_ARTIFACTS_TAG = "mlflow.loggedArtifacts"


def shared_runs_table(
    key: str,
    *,
    title: str,
    created_ms: int,
    search_filter: str,
    order_by: str,
    widths: Mapping[str, int],
    run_name_width: int,
) -> tuple[str, str]:
    """The experiment's tag that holds a runs table, as key and value.

    Args:
        key: names the table within the experiment.
        title: the pages' heading of the table.
        created_ms: milliseconds since 1970.
        search_filter: which runs it shows, in the language of `MlflowClient.search_runs`.
        order_by: the column that it is sorted by, the largest value on top.
        widths: the columns from left to right, in pixels.
        run_name_width: of the first column, in pixels.
    """
    state = {
        "searchFilter": search_filter,
        "orderByKey": order_by,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(widths),
        "columnOrder": [RUN_NAME_COLUMN, *widths, DURATION_COLUMN, CREATED_COLUMN],
        "columnWidths": {
            RUN_NAME_COLUMN: run_name_width,
            **widths,
            DURATION_COLUMN: _DURATION_WIDTH,
            CREATED_COLUMN: _STATUS_ICON_WIDTH,
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
    shared = {
        "name": title,
        "createdAt": created_ms,
        "updatedAt": created_ms,
        "state": json.dumps(state),
    }
    return RUNS_TABLE_TAG + key, json.dumps(shared)


def runs_table_page(base: str, experiment_id: str, key: str) -> str:
    """The address of an experiment's saved runs table."""
    query = urlencode({**WORKFLOW, RUNS_TABLE_KEY: key}, quote_via=quote)
    return f"{base}/#/experiments/{experiment_id}/runs?{query}"


def run_page(base: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page."""
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?{urlencode(WORKFLOW)}"


def picture_markdown(run_id: str, artifact: str) -> str:
    """Markdown that shows an artifact of a run in its description.

    The address is relative, so that the pages find the picture on whatever server they come from.
    """
    query = urlencode({"path": artifact, "run_uuid": run_id})
    return f"![{PurePath(artifact).stem}](get-artifact?{query})"


def tables_tag(artifacts: Iterable[str]) -> dict[str, str]:
    """The run's tag that has these JSON artifacts shown as tables."""
    tables = [{"path": artifact, "type": "table"} for artifact in artifacts]
    return {LOGGED_ARTIFACTS_TAG: json.dumps(tables)}
