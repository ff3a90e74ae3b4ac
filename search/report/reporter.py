"""TODO-DOC"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from search.record.record import SearchRecord

_SECONDS_BETWEEN = 60.0

# A report that takes longer than this at the end of a search is not waited for.
_PATIENCE_SECONDS = 300.0


class Reporter:
    """Has a search's report made again and again while it runs.

    Args:
        folder: of the report; made where it is missing.
        ready: is told when a report lies in the folder.
    """

    def __init__(self, folder: Path, ready: Callable[[], None]) -> None:
        self._folder, self._ready = folder, ready
        self._input = folder.with_suffix(".json")
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = time.monotonic()

    def update(self, record: SearchRecord) -> None:
        """Begins a new report where the last one is a minute old; returns at once."""
        self._collect()
        if self._process is None and time.monotonic() - self._begun > _SECONDS_BETWEEN:
            self._begin(record)

    def finish(self, record: SearchRecord) -> None:
        """Waits for the last report, of the search as it ended; Ctrl-C ends the waiting."""
        self._stop()
        if not record.trials:
            return
        self._begin(record, niceness=0)
        try:
            if self._process is not None:
                self._process.wait(_PATIENCE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            print("the report was not waited for any longer", file=sys.stderr)
        self._collect()
        self._stop()

    def _stop(self) -> None:
        """Ends a report that is being made; each of its files is whole, old or new."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _begin(self, record: SearchRecord, niceness: int = 19) -> None:
        self._begun = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._input.write_text(record.model_dump_json())
            arguments = [str(self._input), str(self._folder), str(niceness)]
            # In a group of its own: Ctrl-C ends the search, and its last report is still drawn.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "search.report.files", *arguments],
                stdin=subprocess.DEVNULL,
                process_group=0,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            print(f"no report: {error}", file=sys.stderr)

    def _collect(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            if self._process.returncode == 0:
                self._ready()
            self._process = None
