"""How long MLflow's pages take to show the leaderboard of a large search.

    python -m tests.benchmarks.pages [--trials N ...] [--epochs N] [--visits N] [--store NAME ...]

A made-up search is written into a store, its first trials by a tracker, the others as copies of
these in the database. Then a browser opens the link that `kdsearch ui` prints: with SQLite from
that command's server, with PostgreSQL from the server of a cluster's head. Seconds are from the
navigation to the first rows in sight, the median of the visits; the first visit is that of a
browser that has never seen the pages. The answer's seconds and bytes are those of the request for
the runs, without what the browser does with them. A table is printed, and `runs/bench/pages.json`
written.

Needs Debian's chromium and chromium-driver, for PostgreSQL also postgresql.
"""

import argparse
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from kdcore.data.image_data import open_data
from kdcore.training.evaluation import default_device
from search.record.record import METRIC, SearchRecord, TrialRecord
from search.record.storage import Storage
from search.tracking.runs_table import leaderboard_link
from tests.benchmarks import report
from tests.benchmarks.tracking import home_of
from tests.integration.commands import Command
from tests.integration.tracking_server import running_server
from tests.records import write_record
from tests.synthetic import log_search, made_up_search

STORES = ("sqlite", "postgresql")
_TRIALS_AT_ONCE = 200
_BY_TRACKER = 2

# A table with a run's rows -> the column that names the run; then the same for its model.
_OF_RUN = dict.fromkeys(("runs", "tags", "params", "latest_metrics", "metrics"), "run_uuid")
_OF_MODEL = dict.fromkeys(
    ("logged_models", "logged_model_params", "logged_model_tags", "logged_model_metrics"),
    "model_id",
)

_ROWS = """
return [...document.querySelectorAll('.ag-center-cols-container .ag-row')]
    .filter((row) => /0\\.\\d/.test(row.textContent)).length
"""
_ANSWER = """
return performance.getEntriesByType('resource').filter((entry) => /runs.search/.test(entry.name))
    .map((entry) => [entry.duration / 1000, entry.decodedBodySize])
"""


def fill(database: str, record: SearchRecord) -> None:
    """Adds the trials that no tracker has written, each as a copy of the last one that one has."""
    engine = sqlalchemy.create_engine(database)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine, only=[*_OF_RUN, *_OF_MODEL, "inputs"])
    with engine.begin() as connection:

        def rows_of(table: str, column: str, value: str) -> list[dict[str, Any]]:
            query = tables.tables[table].select().where(tables.tables[table].c[column] == value)
            return [dict(row) for row in connection.execute(query).mappings()]

        found = rows_of("tags", "value", str(_BY_TRACKER - 1))
        run = next(row["run_uuid"] for row in found if row["key"] == "kdsearch.trial")
        output, *_ = rows_of("inputs", "source_id", run)
        model = output["destination_id"]
        template = {table: rows_of(table, column, run) for table, column in _OF_RUN.items()}
        template |= {table: rows_of(table, column, model) for table, column in _OF_MODEL.items()}
        template["inputs"] = [*rows_of("inputs", "destination_id", run), output]
        rest = record.trials[_BY_TRACKER:]
        for start in range(0, len(rest), _TRIALS_AT_ONCE):
            made: dict[str, list[dict[str, Any]]] = {table: [] for table in template}
            for trial in rest[start : start + _TRIALS_AT_ONCE]:
                ids = {run: uuid4().hex, model: f"m-{uuid4().hex}"}
                for table, rows in template.items():
                    made[table] += _copies(table, rows, ids, trial)
            for table, rows in made.items():
                connection.execute(tables.tables[table].insert(), rows)
        if engine.name == "postgresql":  # which it does itself within minutes
            connection.execute(sqlalchemy.text("ANALYZE"))
    engine.dispose()


def _copies(
    table: str, rows: list[dict[str, Any]], ids: Mapping[str, str], trial: TrialRecord
) -> Iterator[dict[str, Any]]:
    """A template's rows, with another run's ids and a trial's figures."""
    best = list(accumulate(trial.accuracies, max))
    for row in rows:
        copy = {name: ids.get(value, value) for name, value in row.items()}
        if table == "inputs":
            copy["input_uuid"] = uuid4().hex
        elif table == "runs":
            copy["name"] = f"{trial.number:05d} {trial.methods}"
        elif table == "tags" and row["key"] == "kdsearch.trial":
            copy["value"] = str(trial.number)
        elif table in ("metrics", "latest_metrics") and row["key"] in (METRIC, "heldout_accuracy"):
            values = best if row["key"] == METRIC else trial.accuracies
            copy["value"] = values[row["step"] - 1]
        elif table == "params":
            copy["value"] = str(trial.point.get(row["key"], row["value"]))
        yield copy


@contextmanager
def browser(door: str) -> Iterator[webdriver.Chrome]:
    """A browser on a laptop that has never seen MLflow's pages, but knows the server's password.

    Args:
        door: an address of the server, with the password, if it has one.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    options.page_load_strategy = "none"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
            *("disable-background-networking", "disable-component-update", "disable-sync"),
            *(f"user-data-dir={profile}", "window-size=1440,900"),
        ):
            options.add_argument(f"--{flag}")
        chrome = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            chrome.get(door)
            wait_for(lambda: version("mlflow") in chrome.page_source)
            yield chrome
        finally:
            chrome.quit()


def visit(chrome: webdriver.Chrome, link: str) -> dict[str, float]:
    """Opens a leaderboard, until its first rows are in sight."""
    chrome.get("about:blank")
    wait_for(lambda: chrome.current_url == "about:blank")
    started = time.perf_counter()
    chrome.get(link)
    wait_for(lambda: chrome.execute_script(_ROWS))
    seconds = time.perf_counter() - started
    answers = chrome.execute_script(_ANSWER)
    return {"seconds": seconds, "answer_seconds": answers[0][0], "answer_kib": answers[0][1] / 1024}


def wait_for(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError("the browser shows no rows after two minutes")
        time.sleep(0.02)


@contextmanager
def served(store: str, folder: Path, trials: int, epochs: int) -> Iterator[tuple[str, str]]:
    """The link to the leaderboard of a search of so many trials, and a door of its server."""
    made = made_up_search(trials, methods=("none", "kd", "at"), epochs=epochs, grace_epochs=None)
    data = open_data(made.experiment.data, folder)

    def written(uri: str, database: str) -> SearchRecord:
        first = made.model_copy(update={"tracking_uri": uri, "trials": made.trials[:_BY_TRACKER]})
        logged = log_search(first, data, folder / "search")
        fill(database, made)
        whole = logged.model_copy(update={"trials": made.trials})
        return write_record(Storage(str(folder)), whole)

    if store == "sqlite":
        uri = f"sqlite:///{folder}/mlflow.db"
        written(uri, uri)
        ui = Command(folder, "ui", made.name, "--storage", str(folder))
        ui.wait_until(lambda: ui.stdout.count("\n") >= 2)
        try:
            link = ui.stdout.splitlines()[0]
            yield link, f"{link.partition('/#/')[0]}/version"
        finally:
            ui.send(signal.SIGTERM)
            ui.wait()
        return
    with running_server(folder) as server:
        user = "postgres@" if os.getuid() == 0 else ""
        database = f"postgresql://{user}/mlflow?host={folder}/.kdsearch/postgresql"
        with home_of(server.home):
            record = written(server.url, database)
        door = server.url.replace("://", f"://admin:{server.password}@")
        yield leaderboard_link(server.url, record), f"{door}/version"


def measure(store: str, trials: int, epochs: int, visits: int) -> dict[str, Any]:
    """Fills a store, and visits its leaderboard."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with served(store, Path(folder), trials, epochs) as (link, door):
            filled = time.perf_counter() - began
            firsts = []
            for _ in range(visits):
                with browser(door) as chrome:
                    firsts.append(visit(chrome, link))
            with browser(door) as chrome:
                visit(chrome, link)
                others = [visit(chrome, link) for _ in range(visits)]
    return {
        "store": store,
        "trials": trials,
        "epochs": epochs,
        "filled_seconds": filled,
        "first_visit_seconds": statistics.median(row["seconds"] for row in firsts),
        **{name: statistics.median(row[name] for row in others) for name in others[0]},
        "slowest_seconds": max(row["seconds"] for row in (*firsts, *others)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 10_000])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--store", choices=STORES, nargs="*", default=STORES)
    options = parser.parse_args()
    with report.Benchmark("pages", default_device(), 1, visits=options.visits) as benchmark:
        for store in options.store:
            for trials in options.trials:
                benchmark.doing(f"{store}: {trials} trials")
                benchmark.add(measure(store, trials, options.epochs, options.visits))
        benchmark.shown(title="MLflow's leaderboard in a browser", decimals=2)


if __name__ == "__main__":
    main()
