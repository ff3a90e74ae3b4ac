"""Errors and hangs of a user's own code, told from those of others by the files of its frames."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType

from kdcore.errors import PluginError

FILE = "kdsearch-plugin:"
"""What the names of files begin with that are compiled from the texts of plugins."""

# What the files of plugins begin with, with what of it is not said; those of installed ones too.
_beginnings: dict[str, str] = {FILE: FILE}

_LIMIT = "KDSEARCH_PLUGIN_SECONDS"

_exit = os._exit  # which is another one while a plugin is imported


class HangError(BaseException):
    """Raised in code that does not come back, like a loop that tries again after any `Exception`,
    which this is not."""


def mark_installed(module: str) -> None:
    """Makes errors of an installed module, or its package, known as those of a plugin."""
    spec = find_spec(module.partition(".")[0])
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin)
        within = f"{file.parent}{os.sep}" if file.name == "__init__.py" else str(file)
        _beginnings[within] = f"{Path(within).parent}{os.sep}"


def _own(file: str) -> str:
    """What a plugin's file is called in messages; empty for others."""
    for beginning, unsaid in _beginnings.items():
        if file.startswith(beginning):
            return file.removeprefix(unsaid)
    return ""


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    """File and line of each frame that runs a plugin's code, the innermost last."""
    while trace is not None:
        if file := _own(trace.tb_frame.f_code.co_filename):
            yield file, trace.tb_lineno
        trace = trace.tb_next


def line_in_plugin(error: BaseException) -> str:
    """The line of a plugin's code that an error came out of, like `, line 12`, or nothing."""
    lines = [line for _, line in _frames(error.__traceback__)]
    return f", line {lines[-1]}" if lines else ""


def fault_in_plugin(error: BaseException) -> str:
    """An error that came out of a plugin's code, in words; empty for one that did not."""
    if isinstance(error, HangError):
        return str(error)
    frames = list(_frames(error.__traceback__))
    if not frames:
        return ""
    (file, line), kind = frames[-1], type(error).__name__
    said = " ".join(str(error).split())[:300]
    return f"{file}, line {line}, raises {kind}{f': {said}' if said else ''}"


@contextmanager
def told_as(
    error: type[Exception], wording: Callable[[str], str] = lambda fault: fault
) -> Iterator[None]:
    """Turns what a plugin's code raises in the block into one error; those of others pass."""
    try:
        yield
    except error:
        raise
    except (Exception, SystemExit) as caught:
        if not (fault := fault_in_plugin(caught)):
            raise
        raise error(wording(fault)) from None


_beats = 0


def beat() -> None:
    """Counts a batch, by which a hang is told from slow code."""
    global _beats  # noqa: PLW0603
    _beats += 1


def _place(frame: FrameType | None) -> str:
    """Where a frame, or the nearest one below it, is in a plugin's code, like `my_losses.py, line
    12`; empty where none is."""
    while frame is not None:
        if file := _own(frame.f_code.co_filename):
            return f"{file}, line {frame.f_lineno}"
        frame = frame.f_back
    return ""


def _seconds() -> float:
    text = os.environ.get(_LIMIT, "600")
    try:
        if (limit := float(text)) > 0:
            return limit
    except ValueError:
        pass
    raise PluginError(f"{_LIMIT} is {text!r}, but must be a number of seconds > 0, like 600")


@contextmanager
def _watched(tell: Callable[[str], None]) -> Iterator[None]:
    """Watches the thread that runs the block for code of a plugin that does not come back:
    whenever it is looked at, for so long, it is in there, and no batch has begun. Then, and again
    after each such time, another thread calls `tell`, with the reason."""
    limit = _seconds()
    thread, over = threading.get_ident(), threading.Event()

    def watch() -> None:
        since, batch = time.monotonic(), _beats
        while not over.wait(min(5.0, limit / 10)):
            place = _place(sys._current_frames().get(thread))
            if not place or _beats != batch:
                since, batch = time.monotonic(), _beats
            elif time.monotonic() - since > limit:
                tell(f"{place}, has not come back for {limit:g} s")
                since = time.monotonic()

    threading.Thread(target=watch, name="hangs", daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def telling_of_hangs(tell: Callable[[str], None], plugins: Sequence[object]) -> Iterator[None]:
    """Tells of code of a plugin that does not come back, see `ending_hangs`; the block still hangs.

    Args:
        tell: called once with the reason, in another thread.
        plugins: of the experiment; without any nothing is watched.
    """
    told: list[str] = []

    def once(reason: str) -> None:
        if not told:
            told.append(reason)
            tell(reason)

    if not plugins:
        yield
        return
    with _watched(once):
        yield


_ending = False


@contextmanager
def ending_hangs() -> Iterator[None]:
    """Ends code of a plugin in the block that does not come back for `KDSEARCH_PLUGIN_SECONDS`:
    `HangError` is raised in it, and leaves the block as a `PluginError`.

    Where a thread waits, nothing of it runs but the handlers of signals, and these in the main
    thread: in others this does nothing, and neither does it within another such block. Code that
    stays for as long again, in C or as it catches everything, ends with its process.

    Raises:
        PluginError: code did not come back; or `KDSEARCH_PLUGIN_SECONDS` is no time.
    """
    global _ending  # noqa: PLW0603
    if _ending or threading.current_thread() is not threading.main_thread():
        yield
        return
    thread, reasons = threading.get_ident(), list[str]()

    def tell(reason: str) -> None:
        if reasons:
            os.write(2, f"kdsearch: your own code: {reason}; it cannot be ended alone\n".encode())
            _exit(2)
        reasons.append(reason)
        signal.pthread_kill(thread, signal.SIGURG)

    def end(number: int, frame: FrameType | None) -> None:
        if reasons and _place(frame):
            raise HangError(f"{reasons[0]}; if it is only slow, let {_LIMIT} be more")
        reasons.clear()  # it has just come back

    # Where nobody asks for it, this signal does nothing: a late one does no harm.
    usual = signal.signal(signal.SIGURG, end)
    _ending = True
    try:
        with _watched(tell):
            yield
    except HangError as error:
        raise PluginError(str(error)) from None
    finally:
        _ending = False
        signal.signal(signal.SIGURG, usual or signal.SIG_DFL)
