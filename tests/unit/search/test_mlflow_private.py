"""What MLflow does not promise and is used all the same: whether the installed MLflow has it.

No server is started: the pages' JavaScript and the server's source say it. A failure names what a
new version of MLflow has changed, and so what to adapt in `search/tracking/mlflow_private.py`.
"""

import json
import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlencode

import pytest

from search.tracking import mlflow_private


def package() -> Path:
    spec = find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def scripts() -> str:
    """The JavaScript of MLflow's pages."""
    folder = package() / "server/js/build/static/js"
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.js")))


def expect(pattern: str, meaning: str) -> None:
    """Fails, and says what it means, where MLflow's pages lack this."""
    if not re.search(pattern, scripts()):
        changed(meaning)


def changed(meaning: str) -> NoReturn:
    pytest.fail(f"MLflow {version('mlflow')} has changed: {meaning}", pytrace=False)


def literal(text: str) -> str:
    return f'"{re.escape(text)}"'


def test_a_shared_runs_table_is_a_tag_of_the_experiment_that_a_link_opens() -> None:
    expect(
        literal(mlflow_private.RUNS_TABLE_TAG),
        f"its pages no longer read tags {mlflow_private.RUNS_TABLE_TAG}*, so the leaderboard's "
        "link shows MLflow's usual columns",
    )
    expect(
        literal(mlflow_private.RUNS_TABLE_KEY),
        f"addresses no longer name a shared runs table by {mlflow_private.RUNS_TABLE_KEY}",
    )


def test_the_pages_know_every_part_of_a_runs_tables_state() -> None:
    _, value = mlflow_private.shared_runs_table(
        "x", title="x", created_ms=0, search_filter="", order_by="x", widths={}, run_name_width=0
    )
    # The states that the pages begin with: what is shown, and of which runs.
    initial = r"\(\)=>\(\{(?:selectedColumns:|searchFilter:\"\",).*?\}\)"
    states = " ".join(re.findall(initial, scripts()))
    for name in json.loads(json.loads(value)["state"]):
        if not re.search(rf"[{{,]{name}:", states):
            changed(
                f"the state of its runs table has no {name!r} any more, so shared_runs_table "
                "writes something that is ignored"
            )
    for name, words in (
        ("startTime", "ALL"),
        ("lifecycleFilter", "Active"),
        ("modelVersionFilter", "All Runs"),
    ):
        expect(literal(words), f"{name} of its runs table no longer has the value {words!r}")


def test_the_fixed_columns_of_a_runs_table_have_these_ids() -> None:
    for column in (mlflow_private.CREATED_COLUMN, mlflow_private.DURATION_COLUMN):
        expect(f"field:{literal(column)}", f"no column of its runs table has the id {column!r}")
    kind, name = mlflow_private.RUN_NAME_COLUMN.replace("`", "").split(".")
    expect(f"ATTRIBUTES:{literal(kind)}", "the run's name has another id among the columns")
    expect(f"RUN_NAME:{literal(name)}", "the run's name has another id among the columns")


def test_an_experiment_and_an_address_can_ask_for_the_pages_for_training() -> None:
    for tag, kind in mlflow_private.EXPERIMENT_KIND.items():
        expect(literal(tag), f"its pages no longer read {tag}, and may open those for prompts")
        expect(literal(kind), f"{tag} no longer has the value {kind}")
    for key, workflow in mlflow_private.WORKFLOW.items():
        expect(
            rf"\.get\({literal(key)}\)",
            f"addresses no longer choose between training and prompts by {key}",
        )
        expect(literal(workflow), f"{key} no longer has the value {workflow}")


def test_the_pages_have_these_addresses() -> None:
    for address, page in (
        (mlflow_private.runs_table_page("", ":experimentId", "x"), "an experiment's runs"),
        (mlflow_private.run_page("", ":experimentId", ":runUuid"), "a run"),
    ):
        route = address.removeprefix("/#").partition("?")[0]
        expect(literal(route), f"the page of {page} is no longer at {route}")


def test_a_runs_description_can_show_its_pictures() -> None:
    shown = mlflow_private.picture_markdown("abc", "report/1_a b.png")
    query = urlencode({"path": "report/1_a b.png", "run_uuid": "abc"})
    assert shown == f"![1_a b](get-artifact?{query})"
    source = (package() / "server" / "__init__.py").read_text()
    if '"/get-artifact"' not in source:
        changed("its server no longer gives artifacts at get-artifact")
    handlers = (package() / "server" / "handlers.py").read_text()
    handler = handlers.partition("def get_artifact_handler():")[2].partition("\ndef ")[0]
    for name in ("path", "run_uuid"):
        if f'"{name}"' not in handler:
            changed(f"get-artifact no longer reads {name!r}")


def test_a_runs_artifact_can_be_shown_as_a_table() -> None:
    (tag,) = mlflow_private.tables_tag(["report/leaderboard.json"])
    expect(literal(tag), f"its pages no longer read {tag}, so no leaderboard is among the tables")
    expect('TABLE="table"', f"a table in {tag} is no longer called 'table'")


def test_a_shared_runs_table_and_a_summary_fit_into_mlflows_tags() -> None:
    from mlflow.utils import validation

    assert validation.MAX_EXPERIMENT_TAG_KEY_LENGTH >= 250
    assert validation.MAX_EXPERIMENT_TAG_VAL_LENGTH >= 5000
    assert validation.MAX_TAG_VAL_LENGTH >= 8000
