"""Who runs a search: one process at a time, wherever it is.

Each session of a search takes the next number by creating `owners/NUMBER.json`, which of several
processes only one can do, on a disk as in a bucket; the first number takes the search's name with
it. The owner renews its file now and then. Who finds a higher number than its own has lost the
search, and all that it would still write is left out.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from search.errors import LostSearchError, SearchError
from search.record.storage import Storage, search_storage
from search.record.wording import duration

# A driver says every so often that it lives. One that is silent for so long has died; for this the
# clocks of machines must agree within a minute.
HEARTBEAT = timedelta(seconds=30)
SILENCE = timedelta(minutes=3)


class _Lease(BaseModel):
    """What an owner's file says.

    Args:
        host: name of its machine.
        machine: tells machines and containers apart; a process can be looked up only on its own.
        pid: of the process there.
        started: when that process started, in the kernel's ticks, since ids are used again.
        renewed: when the owner last said that it lives.
        released: whether it has ended its work.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    machine: str
    pid: int
    started: str
    renewed: datetime
    released: bool = False

    @property
    def holds(self) -> bool:
        """Whether the owner may still be at work."""
        if self.released or datetime.now(UTC) - self.renewed > SILENCE:
            return False
        return self.machine != _machine() or _start_of(self.pid) == self.started

    def __str__(self) -> str:
        return f"{self.host} (process {self.pid})"


@cache
def _machine() -> str:
    """Names this machine since its start, and the container in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _start_of(pid: int) -> str:
    """When a process of this machine started; empty if there is none."""
    try:
        # After the name in parentheses, which may have spaces, come the fields from the third on.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "unknown"


class Owner:
    """This process as the owner of a search.

    Args:
        storage: where searches are kept.
        search: its name.
        number: of this session, from 1.
        lease: as its file says.

    Attributes:
        place: the URI of the search's own storage.
    """

    def __init__(self, storage: Storage, search: str, number: int, lease: _Lease) -> None:
        self.search, self.number = search, number
        self._storage, self._lease = search_storage(storage, search), lease
        self.place = self._storage.uri
        self._checked = time.monotonic()

    def check(self) -> None:
        """Makes sure that the search is still this process's; called before each write.

        Raises:
            LostSearchError: another process has taken it.
            StorageError: the storage cannot be read.
        """
        check_owner(self._storage, self.search, self.number)
        self._checked = time.monotonic()

    def check_after_silence(self) -> None:
        """As `check`, where this process has not renewed its claim for long: it was frozen, or its
        storage was away."""
        if time.monotonic() - self._checked > 2 * HEARTBEAT.total_seconds():
            self.check()

    def renew(self, *, released: bool = False) -> None:
        """Says that this process lives, or that it has done its work.

        Raises:
            LostSearchError, StorageError: as `check`.
        """
        self.check()
        changes = {"renewed": datetime.now(UTC), "released": released}
        self._lease = self._lease.model_copy(update=changes)
        self._storage.write(_file(self.number), self._lease.model_dump_json().encode())


def check_owner(search: Storage, name: str, number: int) -> None:
    """Makes sure that nobody has taken a search after a session.

    Args:
        search: the search's own storage.
        name: of the search.
        number: of the session.

    Raises:
        LostSearchError: somebody has.
        StorageError: the storage cannot be read.
    """
    if search.exists(_file(number + 1)):
        found = _newest(search)
        who = found[1] if found is not None else "another process"
        raise LostSearchError(
            f"search {name!r} was taken over by {who}, since this process was silent for more than "
            f"{duration(SILENCE.total_seconds())}; it stops here, and writes nothing more"
        )


@contextmanager
def owned(storage: Storage, name: str, *, new: bool = False) -> Iterator[Owner]:
    """Holds a search for this process, and says so until the end of the block.

    A search that is new and of which nothing was written leaves nothing behind.

    Args:
        storage: where searches are kept.
        name: of the search.
        new: whether its name is to be taken.

    Raises:
        SearchError: another process runs it; or the name is taken.
    """
    owner = _take(storage, name, new=new)
    over = threading.Event()

    def keep() -> None:
        while not over.wait(HEARTBEAT.total_seconds()):
            with suppress(OSError, LostSearchError):  # whoever writes next is told
                owner.renew()

    thread = threading.Thread(target=keep, name=f"owner of {name}", daemon=True)
    thread.start()
    try:
        yield owner
    finally:
        over.set()
        thread.join()
        with suppress(OSError, LostSearchError):
            if set(search_storage(storage, name).names()) == {"owners"}:
                storage.remove_folder(f"searches/{name}")
                if storage.local is not None:
                    (storage.local / "searches").rmdir()  # where there is no other
            else:
                owner.renew(released=True)


def has_living_owner(search: Storage) -> bool | None:
    """Whether somebody runs a search; none where it has never had an owner."""
    found = _newest(search)
    return None if found is None else found[1].holds


def _take(storage: Storage, name: str, *, new: bool) -> Owner:
    search = search_storage(storage, name)
    before = _newest(search)
    if new and not _is_free(storage, name, before):
        raise SearchError(f"there is a search {name!r} already")
    if before is not None and before[1].holds:
        raise _busy(name, before[1])
    number = before[0] + 1 if before is not None else 1
    now = datetime.now(UTC)
    lease = _Lease(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_start_of(os.getpid()),
        renewed=now,
    )
    if not search.create(_file(number), lease.model_dump_json().encode()):
        if new:
            raise SearchError(f"there is a search {name!r} already")
        after = _newest(search)
        assert after is not None
        raise _busy(name, after[1])
    return Owner(storage, name, number, lease)


def _is_free(storage: Storage, name: str, before: tuple[int, _Lease] | None) -> bool:
    """Whether a name has no search: also where a process took it, and died before its first
    write."""
    if before is None:
        return not storage.exists(f"searches/{name}")
    return not before[1].holds and search_storage(storage, name).names() == ["owners"]


def _busy(name: str, lease: _Lease) -> SearchError:
    return SearchError(
        f"search {name!r} still runs on {lease}; stop it there, or wait until it has been silent "
        f"for {duration(SILENCE.total_seconds())}"
    )


def _file(number: int) -> str:
    return f"owners/{number:06d}.json"


def _newest(search: Storage) -> tuple[int, _Lease] | None:
    """The last session's number and file."""
    numbers = [name.removesuffix(".json") for name in (search / "owners").names()]
    number = max((int(each) for each in numbers if each.isdecimal()), default=None)
    if number is None:
        return None
    content = search.read(_file(number))
    try:
        return number, _Lease.model_validate_json(content)
    except ValidationError:  # where files cannot be created whole
        now = datetime.now(UTC)
        return number, _Lease(host="another machine", machine="", pid=0, started="", renewed=now)
