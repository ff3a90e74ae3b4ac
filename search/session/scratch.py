"""A folder of a process on its machine, which nobody needs after it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "kdsearch-trial-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder, removed at the end or, where its process was killed, by the next one here:
    else the checkpoints of trials that are cut off would fill the disk."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if (lock := _locked(left)) is not None:
            _remove(left, lock)
    lock = None
    while lock is None:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = _locked(folder)
    try:
        yield folder
    finally:
        _remove(folder, lock)


def _locked(folder: Path) -> int | None:
    """A handle with which nobody else has the folder, until it is closed or the process ends; none
    where another has it, or has removed it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
