"""One process per search."""

import fcntl
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from search.errors import SearchError
from search.record.files import SILENCE
from search.record.record import SearchRecord
from search.record.storage import Storage, local_home
from search.record.wording import duration


@contextmanager
def only_process(storage: Storage, record: SearchRecord) -> Iterator[None]:
    """Holds a search for this process.

    On one machine a lock, which ends with its process however that ends; a search that runs on
    another machine is known by its record, which its driver keeps writing.

    Raises:
        SearchError: another process runs the search.
    """
    folder = local_home(storage) / "searches" / record.name
    folder.mkdir(parents=True, exist_ok=True)
    busy = record.host not in ("", socket.gethostname()) and record.state == "running"
    with (folder / "process.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            busy = True
        if busy:
            raise SearchError(
                f"search {record.name!r} still runs on {record.host or socket.gethostname()}; "
                f"stop it there, or wait until it has been silent for {duration(SILENCE.seconds)}"
            )
        try:
            yield
        finally:
            # A search that never began leaves nothing.
            if [path.name for path in folder.iterdir()] == ["process.lock"]:
                (folder / "process.lock").unlink()
                folder.rmdir()
                with suppress(OSError):
                    folder.parent.rmdir()
