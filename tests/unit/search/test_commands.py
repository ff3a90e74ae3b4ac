"""`kdsearch leaderboard` and `kdsearch compare`, as they are typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from search.cli.app import app
from search.record.record import SearchRecord
from search.record.storage import Storage
from tests.records import write_record
from tests.synthetic import made_up_search


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def typed(storage: Storage, *words: str) -> str:
    """What a command prints that ends well."""
    result = CliRunner().invoke(app, [*words, "--storage", storage.uri], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def running(record: SearchRecord) -> SearchRecord:
    """The search before its last trial began."""
    return record.model_copy(update={"state": "running", "trials": record.trials[:-1]})


def test_filters_work_with_every_format(storage: Storage) -> None:
    record = write_record(storage, made_up_search(20))
    words = ("leaderboard", "made-up-1", "--method", "kd", "--state", "stopped")
    kept = [t for t in record.trials if t.methods == "kd" and t.state == "stopped"]
    assert kept
    rows = json.loads(typed(storage, *words, "--format", "json"))
    assert {row["trial"] for row in rows} == {trial.number for trial in kept}
    assert len(typed(storage, *words, "--format", "csv").splitlines()) == 1 + len(kept)
    assert len(typed(storage, *words, "--format", "markdown").splitlines()) == 2 + len(kept)
    assert typed(storage, *words).count(" stopped") == len(kept)


def test_a_watched_leaderboard_ends_with_its_search(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = made_up_search(8)
    write_record(storage, running(record))
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            write_record(storage, record)

    monkeypatch.setattr("search.cli.browsing.time.sleep", wait)
    output = typed(storage, "leaderboard", "made-up-1", "--watch")
    assert len(waits) == 3
    assert "made-up-1 (finished)" in output
    assert output.count(" finished") + output.count(" stopped") == 8


def test_ctrl_c_ends_watching_cleanly(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(storage, running(made_up_search(8)))

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.cli.browsing.time.sleep", interrupt)
    assert "made-up-1 (running)" in typed(storage, "leaderboard", "made-up-1", "--watch")


def test_what_cannot_be_watched_or_filtered_is_told(storage: Storage) -> None:
    write_record(storage, made_up_search(3))
    with pytest.raises(ValueError, match="--watch shows a table"):
        typed(storage, "leaderboard", "made-up-1", "--watch", "--format", "json")
    with pytest.raises(ValueError, match="no method 'crd'"):
        typed(storage, "leaderboard", "made-up-1", "--method", "crd")
    unknown = CliRunner().invoke(app, ["leaderboard", "made-up-1", "--state", "asleep"])
    assert unknown.exit_code == 2


def test_two_searches_are_compared(storage: Storage) -> None:
    write_record(storage, made_up_search(12, methods=("none", "kd")))
    write_record(storage, made_up_search(12, methods=("none", "rkd"), name="made-up-2"))
    output = typed(storage, "compare", "made-up-1", "made-up-2")
    assert "best held-out %: made-up-1 and made-up-2" in output
    for methods in ("teacher", "kd", "rkd", "none (control)"):
        assert f" {methods} " in output
