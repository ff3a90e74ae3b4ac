"""MLflow's pages as a person sees them: a real server, a real browser."""

import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from kdcore.data.image_data import ImageData
from search.leaderboard.ranking import rank
from search.record.record import SearchRecord
from search.record.storage import Storage
from search.record.wording import percent
from search.report.summary import summary
from search.tracking.runs_table import columns
from tests.integration.commands import Command
from tests.integration.ray_cluster import family
from tests.records import write_record
from tests.synthetic import log_search, made_up_search

pytestmark = pytest.mark.integration

NAMES = ("made-up-1", "made-up-2")

T = TypeVar("T")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("user")))


@pytest.fixture(scope="module")
def record(storage: Storage, digits: ImageData) -> SearchRecord:
    """The first of two searches of one task."""
    folder = storage.local
    assert folder is not None
    records = []
    for name, methods in zip(NAMES, (("none", "kd", "rkd"), ("none", "at")), strict=True):
        made = made_up_search(
            10,
            methods=methods,
            epochs=6,
            grace_epochs=2,
            name=name,
            tracking_uri=f"sqlite:///{folder}/mlflow.db",
        )
        logged = log_search(made, digits, folder / "searches" / name)
        records.append(write_record(storage, logged))
    return records[0]


@pytest.fixture(scope="module")
def runs(record: SearchRecord) -> list[Run]:
    """The runs of the first search's trials."""
    assert record.mlflow_experiment_id is not None
    wanted = f"tags.`kdsearch.search` = '{record.name}' and tags.`kdsearch.role` = 'trial'"
    found: list[Run] = MlflowClient(record.tracking_uri).search_runs(
        [record.mlflow_experiment_id], wanted
    )
    return sorted(found, key=lambda run: int(run.data.tags["kdsearch.trial"]))


def test_runs_have_what_the_columns_show(record: SearchRecord, runs: list[Run]) -> None:
    assert len(runs) == len(record.trials)
    for run, trial in zip(runs, record.trials, strict=True):
        known = run.data
        assert known.tags["state"] == trial.state
        assert known.metrics["epochs_done"] == trial.epochs_done
        assert known.metrics["parameters"] == 77_754
        gain = record.gain(trial)
        assert known.metrics.get("gain") == (gain if gain is None else pytest.approx(gain))


def test_runs_compare_well(record: SearchRecord, runs: list[Run]) -> None:
    names = [str(run.info.run_name) for run in runs]
    assert names == sorted(names)
    for run, trial in zip(runs, record.trials, strict=True):
        assert len(run.data.metrics) < 30
        for key, value in trial.point.items():
            if isinstance(value, float):
                assert float(run.data.params[key]) == value
        (linked,) = run.inputs.dataset_inputs
        assert linked.dataset.name == "digits"
        assert len(linked.dataset.digest) == 16
        models = run.outputs.model_outputs
        assert [model.step for model in models] == [trial.best_epoch] * (trial.state == "finished")


@dataclass(frozen=True)
class Pages:
    """A browser, and the links that `kdsearch ui` printed."""

    browser: webdriver.Chrome
    leaderboard: str
    report: str

    def wait_for(self, look: Callable[[], T]) -> T:
        """What `look` finds, as soon as it finds something."""
        deadline = time.monotonic() + 120
        while not (found := look()):
            assert time.monotonic() < deadline, self.browser.find_element(
                "css selector", "body"
            ).text
            time.sleep(0.5)
        return found

    def open_leaderboard(self, ordered: list[str]) -> list[dict[str, str]]:
        """The rows of the table, each with its cells by column, all from left to right, once the
        columns are in this order."""

        def rows() -> list[dict[str, str]]:
            found = [dict(row) for row in self.browser.execute_script(_READ_TABLE)]
            return found if found and _useful(found[0]) == ordered else []

        self.browser.get(self.leaderboard)
        return self.wait_for(rows)


def _useful(row: dict[str, str]) -> list[str]:
    """The columns beside those that the table always has."""
    return [name for name in row if name.startswith(("metrics.", "params.", "tags."))]


# The table draws no cell twice, and gives rows and columns in any order.
_READ_TABLE = """
const rows = {};
const place = (element) => element.getBoundingClientRect().left;
const cells = [...document.querySelectorAll('.ag-row .ag-cell')];
for (const cell of cells.sort((one, other) => place(one) - place(other))) {
    const row = rows[cell.closest('.ag-row').getAttribute('row-index')] ??= [];
    row.push([cell.getAttribute('col-id'), cell.textContent]);
}
return Object.keys(rows).sort((one, other) => one - other).map((index) => rows[index]);
"""


@pytest.fixture(scope="module")
def ui(storage: Storage, record: SearchRecord) -> Iterator[Command]:
    """`kdsearch ui`, once its server is up; at the end SIGTERM stops both."""
    folder = storage.local
    assert folder is not None
    ui = Command(folder, "ui", record.name, "--storage", storage.uri)
    ui.wait_until(lambda: ui.stdout.count("\n") >= 2)
    link = ui.stdout.splitlines()[0]
    yield ui
    ui.send(signal.SIGTERM)
    done = ui.wait()
    assert done.returncode == 0, done.stderr
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(link.partition("/#/")[0])


@pytest.fixture(scope="module")
def links(ui: Command) -> list[str]:
    """What it prints."""
    return ui.stdout.splitlines()[:2]


def test_ui_starts_mlflow_without_its_runner_of_jobs(ui: Command) -> None:
    started = [Path(f"/proc/{pid}/cmdline").read_text() for pid in family(ui.pid)]
    assert any("mlflow" in command for command in started)
    assert not any("mlflow.server.jobs" in command for command in started)


def test_ui_serves_mlflow_on_this_machine_and_links_to_the_search(
    links: list[str], record: SearchRecord
) -> None:
    base, _, place = links[0].partition("/#/")
    assert base.startswith("http://127.0.0.1:")
    assert place.startswith(f"experiments/{record.mlflow_experiment_id}/runs?")
    assert record.name in place
    with urllib.request.urlopen(base) as page:
        assert b"MLflow" in page.read()
    assert record.mlflow_run_id is not None
    assert MlflowClient(base).get_run(record.mlflow_run_id).info.status == "FINISHED"


@pytest.fixture(scope="module")
def pages(links: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    if "CI" not in os.environ and not shutil.which("chromedriver"):
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
        "window-size=2600,1400",  # the table draws only those columns that are in sight
    ):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield Pages(browser, links[0], links[1].partition(": ")[2])
    finally:
        browser.quit()


def test_the_link_opens_a_leaderboard(pages: Pages, record: SearchRecord) -> None:
    rows = pages.open_leaderboard(list(columns(record)))
    expected = rank(record.trials)
    assert len(rows) == len(expected)
    for row, trial in zip(rows, expected, strict=True):
        assert row["params.`objective`"] == trial.objective
        assert float(row["metrics.`best_heldout_accuracy`"]) == trial.heldout_accuracy
        assert row["tags.`state`"] == trial.state
        assert row["metrics.`epochs_done`"] == str(trial.epochs_done)
        gain = record.gain(trial)
        shown = row["metrics.`gain`"]
        assert shown == "-" if gain is None else float(shown) == pytest.approx(gain)


def test_it_is_mlflows_page_for_training(pages: Pages, record: SearchRecord) -> None:
    pages.open_leaderboard(list(columns(record)))
    text = pages.browser.find_element("css selector", "body").text
    assert "leaderboard of made-up-1" in text
    assert "Model registry" in text
    assert "Prompts" not in text


def test_the_searchs_page_tells_its_story(pages: Pages, record: SearchRecord) -> None:
    pages.browser.get(pages.report)

    def pictures() -> list[tuple[str, int]]:
        found = pages.browser.execute_script(
            "return [...document.querySelectorAll('img[src^=get-artifact]')]"
            ".map((image) => [image.src, image.naturalWidth])"
        )
        return found if found and all(width for _, width in found) else []

    shown = pages.wait_for(pictures)
    assert len(shown) >= 4
    assert {width for _, width in shown} == {860}
    text = pages.browser.find_element("css selector", "body").text
    best = rank(record.trials)[0]
    assert f"reaches {percent(best.heldout_accuracy)} % on the held-out images" in text
    assert "% of the gap" in summary(record)
    assert "% of the gap" in text
