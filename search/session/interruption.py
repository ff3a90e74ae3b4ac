"""Ending a running search: by Ctrl-C, by SIGTERM, or because its budget is spent."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray import tune


class StopRequest(tune.Stopper):
    """Ends all trials once it has been made; Tune asks for it in every turn of its loop."""

    def __init__(self) -> None:
        self.made = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this one trial ends."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials end."""
        return self.made


@contextmanager
def stopping_cleanly(request: StopRequest, say: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C ends the search cleanly and says so at once, the second as usual. So does
    SIGTERM, by which a cluster stops a job.

    Tune's own handler only writes to its log; `environment` switches it off. Outside the main
    thread there are no signals to handle.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, usual[signal.Signals(number)])
        say("stopping; Ctrl-C again ends at once")
        request.made = True

    for number in usual:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
