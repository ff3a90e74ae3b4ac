"""The delivery queue: in order, through outages, and over the death of processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from kdcore.data.image_data import ImageData
from search.environment import own_process
from search.record import owner
from search.record.owner import owned
from search.record.storage import Storage
from search.tracking.delivery import Delivery, delivered
from search.tracking.delivery_queue import DeliveryQueue
from search.tracking.tracker import Tracker
from tests.records import write_record
from tests.synthetic import made_up_search

PATIENCE = 120.0


class Server:
    """Takes entries while it is up."""

    def __init__(self) -> None:
        self.up = True
        self.calls = 0
        self.got: list[int] = []
        self.stored: list[int] = []

    def deliver(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """As MLflow does it, what comes before a refused entry is stored, and may come again."""
        self.calls += 1
        if not self.up:
            raise ConnectionError("away")
        taken: list[int] = []
        for entry in entries:
            if entry["value"] < 0:
                self.stored += taken
                raise ValueError("negative")
            if entry["value"] not in self.stored:
                self.got.append(entry["value"])
            taken.append(entry["value"])


class Delivering:
    """A queue's file, from which a thread delivers as the process does that a search has for it."""

    def __init__(self, path: Path, server: Server, first: Iterable[int] = ()) -> None:
        self._queue = DeliveryQueue(path, [])
        for value in first:
            self.put(value)
        refuses = lambda error: isinstance(error, ValueError)  # noqa: E731
        self.delivery = Delivery(path, server.deliver, refuses, check=self._check)
        self._ending, self._killed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(KeyboardInterrupt):
            self.delivery.run(self._ending)

    def _check(self) -> None:
        if self._killed:
            raise KeyboardInterrupt

    def put(self, value: int) -> None:
        self._queue.put({"value": value})

    def close(self) -> int:
        """Waits for the deliveries; returns how many wait still."""
        self._ending.set()
        self._thread.join(PATIENCE)
        return self._queue.close(PATIENCE)

    def kill(self) -> int:
        """Ends at once; returns how many wait still."""
        self._killed = True
        return self.close()


def wait_until(came: Callable[[], bool]) -> None:
    """Waits for what another thread or process does."""
    deadline = time.monotonic() + PATIENCE
    while not came():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.tracking.delivery._RETRY_SECONDS", (0.01,))
    monkeypatch.setattr("search.tracking.delivery._BATCH_SECONDS", 0.01)
    monkeypatch.setattr("search.tracking.delivery._LOOK_SECONDS", 0.01)


def test_entries_arrive_in_order_also_when_the_server_was_away(tmp_path: Path) -> None:
    server = Server()
    queue = Delivering(tmp_path / "entries.jsonl", server)
    for value in range(100):
        server.up = value % 10 != 5
        queue.put(value)
        time.sleep(0.001)
    server.up = True
    assert queue.close() == 0
    assert server.got == list(range(100))


def test_at_the_end_a_server_that_is_back_is_tried_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.tracking.delivery._RETRY_SECONDS", (10 * PATIENCE,))
    server = Server()
    server.up = False
    queue = Delivering(tmp_path / "entries.jsonl", server, range(3))
    wait_until(lambda: server.calls == 1)
    server.up = True
    assert queue.close() == 0
    assert server.got == [0, 1, 2]


def test_what_waits_is_delivered_once_by_the_next_process(tmp_path: Path) -> None:
    server, path = Server(), tmp_path / "entries.jsonl"
    queue = Delivering(path, server)
    queue.put(0)
    wait_until(lambda: server.got == [0] and delivered(path) == 1)
    server.up = False
    for value in range(1, 5):
        queue.put(value)
    wait_until(lambda: queue.delivery.away)
    assert queue.kill() == 4
    server.up = True
    queue = Delivering(path, server)
    queue.put(5)
    assert queue.close() == 0
    assert server.got == list(range(6))


def test_what_is_refused_is_counted_and_stops_nothing(tmp_path: Path) -> None:
    server = Server()
    queue = Delivering(tmp_path / "entries.jsonl", server)
    for value in (1, -1, 2):
        queue.put(value)
    assert queue.close() == 0
    assert queue.delivery.failures == 1
    assert server.got == [1, 2]


def deliveries(path: Path, values: Sequence[int]) -> Server:
    """A server that got these values as soon as they could all be in one batch."""
    server = Server()
    queue = Delivering(path, server, first=values)
    assert queue.close() == 0
    assert queue.delivery.failures == sum(value < 0 for value in values)
    assert server.got == [value for value in values if value >= 0]
    return server


def test_a_refused_entry_is_narrowed_down_to_and_the_others_come_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.tracking.delivery._BATCH_SIZE", 100)
    values = list(range(300))
    values[77] = -1
    values[203] = -1
    assert deliveries(tmp_path / "two.jsonl", values).calls < 45
    assert deliveries(tmp_path / "all.jsonl", [-1] * 300).calls < 650


def test_a_batch_that_is_full_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.tracking.delivery._BATCH_SIZE", 10)
    monkeypatch.setattr("search.tracking.delivery._BATCH_SECONDS", 2 * PATIENCE)
    server = Server()
    queue = Delivering(tmp_path / "entries.jsonl", server)
    for value in range(35):
        queue.put(value)
    wait_until(lambda: len(server.got) > 35 - 10)  # fewer than a batch are left
    assert queue.close() == 0


def test_a_line_torn_by_a_power_cut_is_left_out(tmp_path: Path) -> None:
    server = Server()
    path = tmp_path / "entries.jsonl"
    path.write_text('{"entry": 1, "value": 1}\n{"entry": 2, "val')
    queue = Delivering(path, server)
    queue.put(2)
    assert queue.close() == 0
    assert server.got == [1, 2]


def test_a_full_disk_gets_the_entries_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, write = Server(), os.write

    def full(file: int, content: bytes) -> int:
        if len(content) > 20:
            return write(file, content[:20])
        raise OSError(28, "No space left on device")

    queue = Delivering(tmp_path / "entries.jsonl", server)
    with monkeypatch.context() as context:
        context.setattr("search.tracking.delivery_queue.os.write", full)
        for value in range(3):
            queue.put(value)
    queue.put(3)
    assert queue.close() == 0
    assert server.got == list(range(4))


def test_a_process_that_was_killed_is_replaced_and_nothing_is_lost(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.tracking.delivery_queue._RESTART_SECONDS", 0.1)
    record = made_up_search(4, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracker = Tracker(record.tracking_uri, tmp_path, tmp_path / "x.jsonl", record, digits)
    tracker.open()
    tracker.start_search(record, "name: x\n", {})
    wait_until(lambda: "mlflow_run_id" in tracker.ids)
    assert tracker._queue._process is not None
    tracker._queue._process.kill()
    for trial in record.trials:
        tracker.start_trial(trial, "kd", {}, None)
        tracker.end_trial(trial)
    assert tracker.close() == 0
    client, experiment = MlflowClient(record.tracking_uri), tracker.ids["mlflow_experiment_id"]
    runs = client.search_runs([experiment], "tags.`kdsearch.role` = 'trial'")
    assert len(runs) == 4
    assert all(run.info.status != "RUNNING" for run in runs)


DRIVER = """
import sys, time
from search.tracking.delivery_queue import DeliveryQueue, command_for
from search.tracking.delivery import Order
from pathlib import Path

queue = Path(sys.argv[1])
order = Order(queue=queue, uri="http://127.0.0.1:9", artifacts=queue.parent, task="a", search="b")
queue = DeliveryQueue(queue, command_for(order))
queue.put({"call": "start_search", "time": 0, "arguments": {}})
queue.start()
while queue._process is None:
    time.sleep(0.01)
print(queue._process.pid, flush=True)
time.sleep(600)
"""


def test_a_driver_that_was_killed_takes_its_delivery_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "x.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        driver.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or state_of(pid) == "Z")


def test_a_users_folder_may_have_the_packages_name(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search/__init__.py").write_text("raise SystemExit('of the user')")
    command = own_process("search.tracking.delivery", "{}")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "validation errors for Order" in done.stderr


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_who_has_lost_a_search_delivers_nothing_more(
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = made_up_search(2, state="running", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    storage = Storage(str(tmp_path))
    write_record(storage, record)
    monkeypatch.setattr(owner, "SILENCE", timedelta())
    with owned(storage, record.name) as lost, owned(storage, record.name):
        queue = tmp_path / "x.jsonl"
        tracker = Tracker(record.tracking_uri, tmp_path, queue, record, digits, lost)
        tracker.open()
        tracker.start_search(record, "name: x\n", {})
        wait_until(lambda: not tracker._queue._thread.is_alive())
        assert tracker.close() == len(queue.read_text().splitlines())
    assert not (tmp_path / "mlflow.db").exists()
    assert json.loads(queue.read_text().splitlines()[0])["call"] == "start_search"
    assert "the delivery to MLflow ended" not in caplog.text  # so it was not started again
