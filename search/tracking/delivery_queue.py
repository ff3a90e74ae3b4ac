"""A queue on disk whose entries a thread delivers in order to a server that may be away."""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from search.errors import StorageError

_LOG = logging.getLogger(__name__)
Entry = Mapping[str, Any]

# Before each retry; the last one repeats.
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)

# Requests cost more than what is in them, so entries are delivered in batches, and a pause lets the
# next batch fill.
_BATCH_SIZE = 500
_BATCH_SECONDS = 2.0

# How long `close` waits for a server that is known to be away.
_AWAY_SECONDS = 3.0


class DeliveryQueue:
    """A queue that outlives its process.

    An entry that was being delivered when the process died is delivered again, so it must do no
    harm to deliver one twice.

    Args:
        path: the file; entries that an earlier process left in it are delivered first.
        deliver: takes entries in order; if it raises, they are tried again before all others.
        is_refusal: whether an error is final; then the entry is dropped.

    Attributes:
        failures: the number of dropped entries.

    Raises:
        StorageError: the file's folder cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        deliver: Callable[[Sequence[Entry]], None],
        is_refusal: Callable[[Exception], bool],
    ) -> None:
        self._deliver, self._is_refusal = deliver, is_refusal
        self.failures = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The number of the last delivered entry; the file may still hold it, and earlier ones.
            self._done = os.open(path.with_suffix(".done"), os.O_RDWR | os.O_CREAT, 0o644)
            done = int(os.pread(self._done, 32, 0).strip() or 0)
            undelivered = [entry for entry in _entries(path) if entry["entry"] > done]
            compact = path.with_suffix(".partial")
            compact.write_text("".join(json.dumps(entry) + "\n" for entry in undelivered))
            os.replace(compact, path)
            self._file = path.open("a")
        except OSError as error:
            raise StorageError(f"cannot write {path}", error) from None
        self._waiting = deque(undelivered)
        self._number = undelivered[-1]["entry"] if undelivered else done
        self._changed = threading.Condition()
        self._closing = self._away = False
        self._thread = threading.Thread(target=self._work, name=path.name, daemon=True)

    def start(self) -> None:
        """Starts to deliver."""
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Adds an entry of JSON values; returns at once."""
        with self._changed:
            self._number += 1
            numbered = {"entry": self._number, **entry}
            try:
                self._file.write(json.dumps(numbered) + "\n")
                self._file.flush()
            except OSError:  # then it is in memory only
                _LOG.exception("cannot write to %s", self._file.name)
            self._waiting.append(numbered)
            self._changed.notify_all()

    def close(self, seconds: float) -> int:
        """Waits at most so long for the deliveries; returns how many entries still wait."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        started = time.monotonic()
        while self._thread.is_alive():
            if time.monotonic() > started + (_AWAY_SECONDS if self._away else seconds):
                break
            self._thread.join(0.1)
        with self._changed:
            waiting = len(self._waiting)
            self._waiting.clear()  # a delivery that hangs is the last one, and is not noted as done
            with suppress(OSError):
                self._file.close()
            os.close(self._done)
        return waiting

    def _work(self) -> None:
        tries, most = 0, _BATCH_SIZE
        suspects = 0  # so many entries, of those that are next, have a refused one among them
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                entries = list(islice(self._waiting, most))
            try:
                self._deliver(entries)
            except Exception as error:
                if not self._is_refusal(error):
                    _LOG.warning("the server is away; the next try is soon: %s", error)
                    self._away = True
                    with self._changed:
                        self._changed.wait(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)])
                    tries += 1
                    continue
                suspects = len(entries)
                if suspects > 1:
                    most = suspects // 2
                    continue
                _LOG.exception("refused: %s", entries[0])
                self.failures += 1
            tries, self._away = 0, False
            suspects = max(suspects - len(entries), 0)
            # Refused entries come together, so what follows one is tried in small batches first.
            most = (suspects + 1) // 2 or min(2 * most, _BATCH_SIZE)
            with self._changed:
                if self._waiting and self._waiting[0] is entries[0]:
                    for _ in entries:
                        self._waiting.popleft()
                    with suppress(OSError):  # then they are delivered twice, which does no harm
                        os.pwrite(self._done, b"%-31d\n" % entries[-1]["entry"], 0)
                self._changed.wait_for(partial(self._has_batch, most), _BATCH_SECONDS)

    def _has_batch(self, size: int) -> bool:
        return self._closing or len(self._waiting) >= size


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """A file's entries, without one that a crash left incomplete at its end."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return
