"""What libraries print goes to a log; what the search says stays on the screen."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from rich.console import Console

_NOTEBOOK_WIDTH = 120
_LOGGERS = ("ray", "optuna", "mlflow", "alembic")


class _Log(io.TextIOBase):
    """Replaces the standard output: nobody who prints fails because the disk is full."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(1, text.encode(errors="replace"))
        return len(text)

    def fileno(self) -> int:
        return 1


@contextmanager
def _loggers_to_log() -> Iterator[None]:
    """Loggers that were set up before have the stream that a notebook shows."""
    handlers = [
        handler
        for name in _LOGGERS
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)
    ]
    streams = [handler.setStream(_Log()) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream)


@contextmanager
def output_to(log: Path) -> Iterator[Console]:
    """Sends what this process and its children print to a file, and yields the user's console.

    The file descriptors themselves are exchanged, so that libraries and child processes obey as
    well. A notebook shows what is written to its own streams, which are no descriptors.
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
            with _loggers_to_log(), redirect_stdout(_Log()), redirect_stderr(_Log()):
                if notebook is None:
                    yield Console(file=screen)
                else:
                    yield Console(
                        file=notebook,
                        width=_NOTEBOOK_WIDTH,
                        force_terminal=False,
                        force_jupyter=False,
                        no_color=True,
                    )
        finally:
            for target, source in enumerate(saved, start=1):
                os.dup2(source, target)
                os.close(source)
