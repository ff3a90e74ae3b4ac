"""What goes wrong in a trial and would again: its own numbers, or a user's own code."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from kdcore.contract.plugin_code import beats, fault_in_plugin, place_in_plugin
from kdcore.errors import NonFiniteLossError

_LIMIT = "KDSEARCH_PLUGIN_SECONDS"
_USUAL = 600.0


_OF_THE_MACHINE = (OSError, torch.OutOfMemoryError)


def lasting_fault(error: BaseException) -> str:
    """Why another try would end as this one; empty where it may not."""
    if isinstance(error, NonFiniteLossError):
        return str(error)
    return "" if isinstance(error, _OF_THE_MACHINE) else fault_in_plugin(error)


@contextmanager
def telling_of_hangs(tell: Callable[[str], None], plugins: Sequence[object]) -> Iterator[None]:
    """Watches the thread that runs the block, as long as it lasts, for code of a plugin that does
    not return: whenever it is looked at, for so long, it is in there, and no batch has begun.

    Args:
        tell: called once with the reason, in another thread; the block still hangs.
        plugins: of the experiment; without any nothing is watched.
    """
    if not plugins:
        yield
        return
    limit = float(os.environ.get(_LIMIT, _USUAL))
    thread, over = threading.get_ident(), threading.Event()

    def watch() -> None:
        since, batch = time.monotonic(), beats()
        while not over.wait(min(5.0, limit / 10)):
            place = place_in_plugin(thread)
            if not place or beats() != batch:
                since, batch = time.monotonic(), beats()
            elif time.monotonic() - since > limit:
                tell(f"{place}, has not come back for {limit:g} s")
                return

    threading.Thread(target=watch, name="hangs", daemon=True).start()
    try:
        yield
    finally:
        over.set()
