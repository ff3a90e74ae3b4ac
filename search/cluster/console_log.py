"""What libraries print goes to a log; what the search says stays on the screen."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from rich.console import Console

_NOTEBOOK_WIDTH = 120


class _Log(io.TextIOBase):
    """Replaces the standard output: nobody who prints fails because the disk is full."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(1, text.encode(errors="replace"))
        return len(text)

    def fileno(self) -> int:
        return 1


@contextmanager
def output_to(log: Path) -> Iterator[Console]:
    """Sends what this process and its children print to a file, and yields the user's console.

    The file descriptors themselves are exchanged, so that libraries and child processes obey as
    well. A notebook shows what is written to its own stream, which is no descriptor.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    notebook = sys.stdout if "ipykernel" in sys.modules else None
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as file, os.fdopen(os.dup(1), "w") as screen:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stdout(_Log()), redirect_stderr(_Log()):
                if notebook is not None:
                    yield Console(file=notebook, width=_NOTEBOOK_WIDTH, force_jupyter=False)
                else:
                    yield Console(file=screen)
        finally:
            for target, source in enumerate(saved, start=1):
                os.dup2(source, target)
                os.close(source)
