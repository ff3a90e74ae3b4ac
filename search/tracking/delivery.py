"""The process that delivers a search's queued entries to MLflow.

`python -m search.tracking.delivery ORDER` is what `DeliveryQueue` starts. MLflow's work and memory
are not the driver's then, and a driver that stands still has no delivery that wakes up with it.
"""

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

_LOG = logging.getLogger(__name__)
Entry = Mapping[str, Any]

# Before each retry; the last one repeats.
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)

# Requests cost more than what is in them, so entries are delivered in batches, and a pause lets the
# next batch fill.
_BATCH_SIZE = 500
_BATCH_SECONDS = 2.0
_LOOK_SECONDS = 0.1  # between looks at the file

_CHECK_SECONDS = 2.0  # between looks at who owns the search

# A process that delivers for an earlier driver ends within this, or hangs.
_LOCK_SECONDS = 60.0


class Order(BaseModel):
    """What a process delivers, and to where.

    Args:
        queue: the file of the entries.
        uri: MLflow's tracking store or server.
        artifacts: the folder for artifacts of a local store.
        task: the name of MLflow's experiment.
        search: the name of the search.
        owner: of the search, while nobody takes it: the search's own storage, and the number of the
            session; none: whoever it is.
    """

    model_config = ConfigDict(frozen=True)

    queue: Path
    uri: str
    artifacts: Path
    task: str
    search: str
    owner: tuple[str, int] | None = None


class Progress(BaseModel):
    """What a process tells of its deliveries.

    Args:
        failures: the number of entries that MLflow refused.
        away: whether the last try reached nobody.
        ids: MLflow's ids of experiment and run, as fields of the search's record, once known.
    """

    model_config = ConfigDict(frozen=True)

    failures: int = 0
    away: bool = False
    ids: dict[str, str] = {}


@contextmanager
def held(queue: Path) -> Iterator[None]:
    """Holds a queue's file, for which one process at a time delivers.

    One that hangs is not waited for long: to deliver an entry twice does no harm.
    """
    lock = FileLock(queue.with_suffix(".lock"))
    try:
        lock.acquire(_LOCK_SECONDS)
    except Timeout:
        _LOG.warning("another process still delivers %s; going on", queue)
    try:
        yield
    finally:
        lock.release()


def delivered(queue: Path) -> int:
    """The number of the last entry that was delivered; the file may still hold it, and earlier
    ones."""
    try:
        return int(queue.with_suffix(".done").read_bytes().strip() or 0)
    except FileNotFoundError:
        return 0


class Delivery:
    """Delivers a queue's entries in order.

    An entry that was being delivered when its process died is delivered again, so it must do no
    harm to deliver one twice.

    Args:
        queue: the file; more may be added to it at any time.
        deliver: takes entries in order; if it raises, they are tried again before all others.
        is_refusal: whether an error is final; then the entry is dropped.
        tell: is told of each change of `failures` and `away`, and of each batch.
        check: called again and again; raises where nothing must be delivered any more.

    Attributes:
        failures: the number of dropped entries.
        away: whether the last try failed.
    """

    def __init__(
        self,
        queue: Path,
        deliver: Callable[[Sequence[Entry]], None],
        is_refusal: Callable[[Exception], bool],
        tell: Callable[["Delivery"], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._deliver, self._is_refusal = deliver, is_refusal
        self._tell, self._check = tell, check
        self.failures, self.away = 0, False
        self._last = delivered(queue)
        self._file = queue.open("rb", buffering=0)
        self._done = os.open(queue.with_suffix(".done"), os.O_WRONLY | os.O_CREAT, 0o644)
        self._waiting: deque[Entry] = deque()
        self._torn = b""

    def run(self, ending: threading.Event) -> None:
        """Delivers what comes, until all is delivered after an event; once."""
        try:
            self._run(ending)
        finally:
            self._file.close()
            os.close(self._done)

    def _run(self, ending: threading.Event) -> None:
        tries, most = 0, _BATCH_SIZE
        suspects = 0  # so many entries, of those that are next, have a refused one among them
        while True:
            last_look = ending.is_set()
            self._read()
            self._check()
            if not self._waiting:
                if last_look:
                    return
                ending.wait(_LOOK_SECONDS)
                continue
            entries = list(islice(self._waiting, most))
            try:
                self._deliver(entries)
            except Exception as error:
                if not self._is_refusal(error):
                    _LOG.warning("the server is away; the next try is soon: %s", error)
                    self.away = True
                    self._tell(self)
                    # At the end nobody waits for long: a first try comes at once.
                    pause = time.sleep if last_look else ending.wait
                    pause(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)])
                    tries += 1
                    continue
                suspects = len(entries)
                if suspects > 1:
                    most = suspects // 2
                    continue
                _LOG.exception("refused: %s", entries[0])
                self.failures += 1
            tries, self.away = 0, False
            suspects = max(suspects - len(entries), 0)
            # Refused entries come together, so what follows one is tried in small batches first.
            most = (suspects + 1) // 2 or min(2 * most, _BATCH_SIZE)
            for _ in entries:
                self._waiting.popleft()
            with suppress(OSError):  # then they are delivered twice, which does no harm
                os.pwrite(self._done, b"%-31d\n" % entries[-1]["entry"], 0)
            self._tell(self)
            self._wait_for_batch(most, ending)

    def _wait_for_batch(self, size: int, ending: threading.Event) -> None:
        deadline = time.monotonic() + _BATCH_SECONDS
        while len(self._waiting) < size and time.monotonic() < deadline:
            if ending.wait(_LOOK_SECONDS):
                return
            self._read()

    def _read(self) -> None:
        """Takes in what was added to the file; a line that is not whole yet comes later."""
        *lines, self._torn = (self._torn + self._file.read()).split(b"\n")
        entries = map(json.loads, lines)
        self._waiting += (entry for entry in entries if entry["entry"] > self._last)


def _serve(order: Order) -> None:
    """Delivers until the driver says that it ends, or is gone."""
    # What libraries print must not get among what the driver reads.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ending = threading.Event()

    def listen() -> None:
        # After a driver that was killed another one delivers what is left; one that hears the end
        # of this process closes its side too.
        if not sys.stdin.readline() and not ending.is_set():
            os._exit(1)
        ending.set()

    threading.Thread(target=listen, daemon=True).start()
    from search.tracking.mlflow_writer import MlflowWriter, is_refusal

    writer = MlflowWriter(order.uri, order.artifacts, order.task, order.search)

    def tell(delivery: Delivery) -> None:
        now = Progress(failures=delivery.failures, away=delivery.away, ids=dict(writer.ids))
        with suppress(OSError):
            print(now.model_dump_json(), file=answers, flush=True)

    try:
        with held(order.queue):
            Delivery(order.queue, writer.deliver, is_refusal, tell, _checks(order)).run(ending)
    finally:
        ending.set()


def _checks(order: Order) -> Callable[[], None]:
    """What makes sure that the search is still its driver's."""
    from search.record.owner import check_owner
    from search.record.storage import Storage

    if order.owner is None:
        return lambda: None
    place, number = order.owner
    storage, due = Storage(place), 0.0

    def check() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _CHECK_SECONDS
            with suppress(OSError):  # a storage that is away says nothing
                check_owner(storage, order.search, number)

    return check


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from search.errors import LostSearchError

    try:
        _serve(Order.model_validate_json(sys.argv[1]))
    except LostSearchError as error:
        _LOG.warning("%s", error)


if __name__ == "__main__":
    main()
