"""Entries for a server that may be away: kept on disk, delivered in order by a thread."""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)
Entry = Mapping[str, Any]

# Between tries: soon at first, so that a hiccup costs nothing; then seldom.
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)

# As many entries go to the server together, with a breath before the next ones: requests cost more
# than what is in them.
_TOGETHER = 100
_BREATH_SECONDS = 0.5

# A server that is known to be away is not waited for at the end.
_AWAY_SECONDS = 3.0


class DeliveryQueue:
    """A queue that outlives its process. An entry that was being delivered when the process died is
    delivered again, so delivering twice must do no harm.

    Args:
        path: of the file; entries that wait in it are delivered first.
        deliver: takes entries that follow each other; what it raises delays them, and all that
            come after.
        refused: whether an error means that no further try can help; then the entry is dropped.

    Attributes:
        failures: how many entries were dropped.
    """

    def __init__(
        self,
        path: Path,
        deliver: Callable[[Sequence[Entry]], None],
        refused: Callable[[Exception], bool],
    ) -> None:
        self._deliver, self._refused = deliver, refused
        self.failures = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        # What the last number says is done is not done again, even if the file still has it.
        self._done = os.open(path.with_suffix(".done"), os.O_RDWR | os.O_CREAT, 0o644)
        done = int(os.pread(self._done, 32, 0).strip() or 0)
        kept = [entry for entry in _entries(path) if entry["entry"] > done]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        os.replace(partial, path)
        self._file = path.open("a")
        self._waiting = deque(kept)
        self._number = kept[-1]["entry"] if kept else done
        self._changed = threading.Condition()
        self._closing = self._away = False
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Adds an entry of plain values; returns at once."""
        with self._changed:
            self._number += 1
            numbered = {"entry": self._number, **entry}
            try:
                self._file.write(json.dumps(numbered) + "\n")
                self._file.flush()
            except OSError:  # then it lives in memory only
                _LOG.exception("cannot write to %s", self._file.name)
            self._waiting.append(numbered)
            self._changed.notify_all()

    def close(self, seconds: float) -> int:
        """Waits until all is delivered, at most so long; returns how many entries still wait."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        started = time.monotonic()
        while time.monotonic() < started + (_AWAY_SECONDS if self._away else seconds):
            self._thread.join(0.1)
            if not self._thread.is_alive():
                break
        with self._changed:
            waiting = len(self._waiting)
            self._waiting.clear()  # a delivery that hangs is the last one
            with suppress(OSError):
                self._file.close()
        return waiting

    def _work(self) -> None:
        tries, most = 0, _TOGETHER
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                entries = list(islice(self._waiting, most))
            try:
                self._deliver(entries)
            except Exception as error:
                if not self._refused(error):
                    _LOG.warning("away, and tried again soon: %s", error)
                    self._away = True
                    with self._changed:
                        self._changed.wait(_PAUSES[min(tries, len(_PAUSES) - 1)])
                    tries += 1
                    continue
                if len(entries) > 1:  # one of them; it is found by delivering each alone
                    most = 1
                    continue
                _LOG.exception("refused: %s", entries[0])
                self.failures += 1
                most = _TOGETHER
            tries, self._away = 0, False
            with self._changed:
                if self._waiting and self._waiting[0] is entries[0]:
                    for _ in entries:
                        self._waiting.popleft()
                    with suppress(OSError):  # then they are delivered twice, which does no harm
                        os.pwrite(self._done, b"%-31d\n" % entries[-1]["entry"], 0)
                if most > 1:
                    self._changed.wait_for(lambda: self._closing, _BREATH_SECONDS)


def _entries(path: Path) -> list[dict[str, Any]]:
    """A file's entries; the last one is torn where the machine went down."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
