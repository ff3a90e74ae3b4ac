"""Has a search's report written by another process while the search runs.

Drawing takes seconds, and neither its time nor its errors may reach the search. So reports are
written from a copy of the search's record, at the lowest priority while trials run.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from search.environment import own_process
from search.record.live_record import LiveRecord
from search.record.record import SearchRecord

_INTERVAL_SECONDS = 60.0  # between the starts of two reports
_LAST_REPORT_SECONDS = 300.0  # how long the end of a search waits for its report


class Reporter:
    """Keeps a search's report up to date.

    Args:
        folder: the report's folder, created if missing.
        ready: called after each report that was written.
    """

    def __init__(self, folder: Path, ready: Callable[[], None]) -> None:
        self._folder, self._ready = folder, ready
        self._input = folder.with_suffix(".json")
        self._process: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()

    def update(self, search: LiveRecord) -> None:
        """Starts a new report if the last one is a minute old; returns at once."""
        self._collect()
        if self._process is None and time.monotonic() - self._started > _INTERVAL_SECONDS:
            self._start(search.record)

    def finish(self, record: SearchRecord) -> None:
        """Writes the last report and waits for it; Ctrl-C stops the waiting."""
        self._stop()
        if not record.trials:
            return
        self._start(record, niceness=0)
        try:
            if self._process is not None:
                self._process.wait(_LAST_REPORT_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            print("stopped waiting for the report", file=sys.stderr)
        self._collect()
        self._stop()

    def _stop(self) -> None:
        """Ends the process; every file of the report is whole, old or new."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self, record: SearchRecord, niceness: int = 19) -> None:
        self._started = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._input.write_text(record.model_dump_json())
            arguments = [str(self._input), str(self._folder), str(niceness)]
            # In a process group of its own, so that Ctrl-C ends the search and not its last report.
            self._process = subprocess.Popen(
                own_process("search.report.files", *arguments),
                stdin=subprocess.DEVNULL,
                process_group=0,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            print(f"cannot write the report: {error}", file=sys.stderr)

    def _collect(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            if self._process.returncode == 0:
                self._ready()
            self._process = None
