"""The delivery queue: in order, through outages, and over the death of a process."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from search.tracking.delivery_queue import DeliveryQueue

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


def open_queue(path: Path, server: Server) -> DeliveryQueue:
    queue = DeliveryQueue(path, server.deliver, lambda error: isinstance(error, ValueError))
    queue.start()
    return queue


def wait_until(came: Callable[[], bool]) -> None:
    """Waits for what the queue's thread does."""
    deadline = time.monotonic() + PATIENCE
    while not came():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.tracking.delivery_queue._RETRY_SECONDS", (0.01,))
    monkeypatch.setattr("search.tracking.delivery_queue._BATCH_SECONDS", 0.01)
    monkeypatch.setattr("search.tracking.delivery_queue._AWAY_SECONDS", PATIENCE)


def test_entries_arrive_in_order_also_when_the_server_was_away(tmp_path: Path) -> None:
    server = Server()
    queue = open_queue(tmp_path / "entries.jsonl", server)
    for value in range(100):
        server.up = value % 10 != 5
        queue.put({"value": value})
        time.sleep(0.001)
    server.up = True
    assert queue.close(PATIENCE) == 0
    assert server.got == list(range(100))


def test_what_waits_is_delivered_once_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    queue = open_queue(tmp_path / "entries.jsonl", server)
    queue.put({"value": 0})
    wait_until(lambda: server.got == [0])
    server.up = False
    for value in range(1, 5):
        queue.put({"value": value})
    wait_until(lambda: queue._away)
    monkeypatch.setattr("search.tracking.delivery_queue._AWAY_SECONDS", 0.2)
    assert queue.close(PATIENCE) == 4
    monkeypatch.setattr("search.tracking.delivery_queue._AWAY_SECONDS", PATIENCE)
    server.up = True
    queue = open_queue(tmp_path / "entries.jsonl", server)
    queue.put({"value": 5})
    assert queue.close(PATIENCE) == 0
    assert server.got == list(range(6))


def test_what_is_refused_is_counted_and_stops_nothing(tmp_path: Path) -> None:
    server = Server()
    queue = open_queue(tmp_path / "entries.jsonl", server)
    for value in (1, -1, 2):
        queue.put({"value": value})
    assert queue.close(PATIENCE) == 0
    assert queue.failures == 1
    assert server.got == [1, 2]


def deliveries(path: Path, values: Sequence[int]) -> Server:
    """A server that got these values as soon as they could all be in one batch."""
    server = Server()
    queue = DeliveryQueue(path, server.deliver, lambda error: isinstance(error, ValueError))
    for value in values:
        queue.put({"value": value})
    queue.start()
    assert queue.close(PATIENCE) == 0
    assert queue.failures == sum(value < 0 for value in values)
    assert server.got == [value for value in values if value >= 0]
    return server


def test_a_refused_entry_is_narrowed_down_to_and_the_others_come_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.tracking.delivery_queue._BATCH_SIZE", 100)
    values = list(range(300))
    values[77] = -1
    values[203] = -1
    assert deliveries(tmp_path / "two.jsonl", values).calls < 45
    assert deliveries(tmp_path / "all.jsonl", [-1] * 300).calls < 650


def test_a_batch_that_is_full_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.tracking.delivery_queue._BATCH_SIZE", 10)
    monkeypatch.setattr("search.tracking.delivery_queue._BATCH_SECONDS", 2 * PATIENCE)
    server = Server()
    queue = open_queue(tmp_path / "entries.jsonl", server)
    for value in range(35):
        queue.put({"value": value})
    wait_until(lambda: len(server.got) > 35 - 10)  # fewer than a batch are left
    assert queue.close(PATIENCE) == 0


def test_a_line_torn_by_a_power_cut_is_left_out(tmp_path: Path) -> None:
    server = Server()
    path = tmp_path / "entries.jsonl"
    path.write_text('{"entry": 1, "value": 1}\n{"entry": 2, "val')
    queue = open_queue(path, server)
    queue.put({"value": 2})
    assert queue.close(PATIENCE) == 0
    assert server.got == [1, 2]
