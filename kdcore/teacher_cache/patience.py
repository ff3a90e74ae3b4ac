"""How long something is tried again while a storage is away or a disk is full."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS, RETRY_SECONDS = 180.0, 2.0

T = TypeVar("T")


def patiently(act: Callable[[], T]) -> T:
    """Tries again while a storage is away or a disk is full, for some minutes.

    Raises:
        OSError: it lasted longer.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return act()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)
