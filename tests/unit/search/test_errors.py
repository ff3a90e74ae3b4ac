"""Errors say what and why, once, and survive the way back from another process."""

import errno
import pickle

from kdcore.errors import KdsearchError
from search.errors import StorageError


def test_a_storage_error_keeps_the_librarys_reason_apart_and_travels() -> None:
    full = StorageError("s3://x cannot be written", OSError(errno.ENOSPC, "No space left"))
    bare = StorageError("s3://x cannot be read", OSError("connection refused"))
    for error, words in (
        (full, "s3://x cannot be written: No space left"),
        (bare, "s3://x cannot be read: connection refused"),
    ):
        for each in (error, pickle.loads(pickle.dumps(error))):
            assert isinstance(each, StorageError)
            assert isinstance(each, KdsearchError)
            assert str(each) == words
            assert words.endswith(f": {each.strerror}")
            assert each.errno == error.errno
