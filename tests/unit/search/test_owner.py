"""A search has one owner at a time."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from search.errors import ExperimentError, LostSearchError, SearchError
from search.record import owner
from search.record.files import read_record, search_names
from search.record.owner import owned
from search.record.storage import Storage
from search.record.trial_checkpoints import Checkpoints
from search.session.launch import taken
from tests.records import write_record
from tests.synthetic import made_up_search

TRIES, AT_ONCE = 20, 4


def takers(uri: str, name: str, *, new: bool, at_once: int = AT_ONCE) -> int:
    """How many of those who try at the same instant take a search, each as on its own machine."""
    start, tried = threading.Barrier(at_once), threading.Barrier(at_once)

    def take(_: int) -> bool:
        storage = Storage(uri)
        start.wait()
        try:
            with owned(storage, name, new=new):
                tried.wait()
                return True
        except SearchError:
            tried.wait()
            return False

    with ThreadPoolExecutor(at_once) as pool:
        return sum(pool.map(take, range(at_once)))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_those_who_start_at_once_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def refused(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("search.record.storage.os.link", refused)
    storage = Storage(str(tmp_path))
    write_record(storage, made_up_search(2, name="there"))
    for number in range(TRIES):
        assert takers(storage.uri, f"new-{number}", new=True) == 1
        assert takers(storage.uri, "there", new=False) == 1
    assert search_names(storage) == ["there"]  # searches that never began leave nothing
    assert os.listdir(tmp_path / "searches") == ["there"]


def test_a_name_is_given_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with taken(storage, "task", None) as first, taken(storage, "task", None) as second:
        assert (first.search, second.search) == ("task-1", "task-2")
        with (
            pytest.raises(ExperimentError, match="'task-1' is taken"),
            taken(storage, "", "task-1"),
        ):
            pass


def test_who_has_lost_a_search_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    record = write_record(storage, made_up_search(2, state="running"))
    (tmp_path / "student.pt").write_bytes(b"weights")
    with owned(storage, record.name) as frozen:
        with pytest.raises(SearchError, match="still runs on"), owned(storage, record.name):
            pass
        assert read_record(storage, record.name).state == "running"
        monkeypatch.setattr(owner, "SILENCE", timedelta())
        assert read_record(storage, record.name).state == "interrupted"
        with owned(storage, record.name) as present:
            kept = write_record(storage, record.model_copy(update={"ended": "new"}), present)
            folder = f"searches/{record.name}/trials/000"
            for write in (
                lambda: write_record(storage, record, frozen),
                frozen.renew,
                lambda: Checkpoints(storage, folder, frozen.check).save(tmp_path, []),
            ):
                with pytest.raises(LostSearchError, match="was taken over by"):
                    write()
            assert not storage.exists(folder)
            assert read_record(storage, record.name).ended == kept.ended


TAKE_AND_WAIT = """
import sys, time
from search.record.owner import owned
from search.record.storage import Storage

with owned(Storage(sys.argv[1]), sys.argv[2]):
    print("taken", flush=True)
    time.sleep(600)
"""


def test_a_process_that_was_killed_owns_nothing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    record = write_record(storage, made_up_search(2, state="running"))
    command = [sys.executable, "-c", TAKE_AND_WAIT, str(tmp_path), record.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"taken\n"
        assert read_record(storage, record.name).state == "running"
        driver.kill()
    assert read_record(storage, record.name).state == "interrupted"
    with owned(storage, record.name) as present:
        assert present.number == 2


def test_a_name_is_free_again_where_nothing_was_written_before_its_process_died(
    tmp_path: Path,
) -> None:
    storage = Storage(str(tmp_path))
    command = [sys.executable, "-c", TAKE_AND_WAIT, str(tmp_path), "begun"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"taken\n"
        with pytest.raises(ExperimentError, match="is taken"), taken(storage, "", "begun"):
            pass
        driver.kill()
    with taken(storage, "", "begun") as present:
        assert present.number == 2
