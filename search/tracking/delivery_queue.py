"""A queue on disk whose entries a process of its own delivers to MLflow, which may be away."""

import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from search.environment import own_process
from search.errors import StorageError
from search.tracking.delivery import Entry, Order, Progress, delivered, held

_LOG = logging.getLogger(__name__)

# How long `close` waits for a server that is known to be away.
_AWAY_SECONDS = 3.0
_RESTART_SECONDS = 5.0  # after a process that delivers has died


class DeliveryQueue:
    """A queue that outlives its process; see `Delivery`.

    Entries that an earlier process left in it are delivered first. A process that delivers and dies
    is started again.

    Args:
        queue: the file.
        command: of the process that delivers from it.

    Attributes:
        progress: what that process has told.

    Raises:
        StorageError: the file's folder cannot be written to.
    """

    def __init__(self, queue: Path, command: Sequence[str]) -> None:
        self.progress = Progress()
        self._queue, self._command = queue, command
        try:
            queue.parent.mkdir(parents=True, exist_ok=True)
            with held(queue):
                self._number = _compact(queue)
            self._file = os.open(queue, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise StorageError(f"cannot write {queue}", error) from None
        self._unwritten = b""
        self._lock = threading.Lock()
        self._closing, self._stopped = threading.Event(), False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_delivering, name=queue.name, daemon=True)

    def start(self) -> None:
        """Starts to deliver."""
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Adds an entry of JSON values; returns at once."""
        with self._lock:
            self._number += 1
            self._unwritten += json.dumps({"entry": self._number, **entry}).encode() + b"\n"
            self._write()

    def close(self, seconds: float) -> int:
        """Waits at most so long for the deliveries; returns how many entries still wait."""
        started = time.monotonic()
        self._closing.set()
        with self._lock:
            self._write()
        self._say_end()
        while self._thread.is_alive():
            if time.monotonic() > started + (_AWAY_SECONDS if self.progress.away else seconds):
                self._stop()
            self._thread.join(0.05)
        os.close(self._file)
        return self._number - delivered(self._queue)

    def _write(self) -> None:
        """Writes what is not in the file yet; a full disk gets it with a later entry."""
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        except OSError:
            _LOG.exception("cannot write to %s", self._queue)

    def _keep_delivering(self) -> None:
        while True:
            with self._lock:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    process_group=0,  # Ctrl-C ends the search, which then ends this
                )
            if self._closing.is_set():
                self._say_end()
            with self._process as process:
                assert process.stdout is not None
                for line in process.stdout:
                    with suppress(ValidationError):  # of a line that was cut off
                        told = Progress.model_validate_json(line)
                        ids = {**self.progress.ids, **told.ids}
                        self.progress = told.model_copy(update={"ids": ids})
            if process.returncode == 0 or self._stopped:
                return
            self._closing.wait(_RESTART_SECONDS)
            _LOG.warning("the delivery to MLflow ended with %d", process.returncode)

    def _say_end(self) -> None:
        with self._lock, suppress(OSError, ValueError):  # where it has ended already
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(b"end\n")
                self._process.stdin.flush()

    def _stop(self) -> None:
        self._stopped = True
        with self._lock:
            if self._process is not None:
                self._process.kill()


def command_for(order: Order) -> list[str]:
    """What `DeliveryQueue` starts to have an order delivered."""
    return own_process("search.tracking.delivery", order.model_dump_json())


def _compact(queue: Path) -> int:
    """Leaves in a queue's file what was not delivered; returns its last number."""
    done = delivered(queue)
    waiting = [entry for entry in _entries(queue) if entry["entry"] > done]
    partial = queue.with_suffix(".partial")
    partial.write_text("".join(json.dumps(entry) + "\n" for entry in waiting))
    os.replace(partial, queue)
    return waiting[-1]["entry"] if waiting else done


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
