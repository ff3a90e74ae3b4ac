"""TODO-DOC"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from rich.console import Console


class _Log(io.TextIOBase):
    """What replaces the standard output: nobody who prints fails because the disk is full."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(1, text.encode(errors="replace"))
        return len(text)

    def fileno(self) -> int:
        return 1


@contextmanager
def output_to(log: Path) -> Iterator[Console]:
    """Sends whatever this process and its children print to a file; yields the console that stays.

    The file descriptors themselves are exchanged, so that libraries and child processes obey as
    well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab") as file, os.fdopen(os.dup(1), "w") as screen:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stdout(_Log()), redirect_stderr(_Log()):
                yield Console(file=screen)
        finally:
            for target, source in enumerate(kept, start=1):
                os.dup2(source, target)
                os.close(source)
