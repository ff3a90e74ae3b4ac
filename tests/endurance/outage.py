"""A search that goes on without its storage for a while."""

import signal
import time
from contextlib import AbstractContextManager

from search.record.files import read_record, search_names
from search.record.storage import Storage
from tests.integration.commands import Command


def outlast(
    search: Command,
    storage: Storage,
    name: str,
    outage: AbstractContextManager[object],
    seconds: float,
) -> str:
    """Waits for the end of a search, which must succeed; returns what it prints.

    Args:
        search: the command that runs it.
        storage: its own.
        name: its name.
        outage: begins once a trial has begun.
        seconds: that it lasts.
    """

    def trains() -> bool:
        return name in search_names(storage) and bool(read_record(storage, name).trials)

    try:
        search.wait_until(trains)
        with outage:
            time.sleep(seconds)
            assert search.is_running(), search.stdout + search.stderr
        done = search.wait()
    finally:
        search.send(signal.SIGKILL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
