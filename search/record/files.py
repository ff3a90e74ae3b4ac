"""A search's record as commands read it."""

from datetime import UTC, datetime

from search.errors import SearchError, no_search
from search.record.live_record import LiveRecord
from search.record.log import RecordReader, has_record
from search.record.owner import SILENCE, has_living_owner
from search.record.record import SearchRecord
from search.record.storage import Storage, search_storage


def read_record(storage: Storage, name: str, reader: RecordReader | None = None) -> SearchRecord:
    """Reads a search's record. A search whose driver has died or fallen silent is interrupted.

    Args:
        storage: where searches are kept.
        name: of the search.
        reader: of this record; who reads often keeps one, and it reads only what is new.

    Raises:
        SearchError: there is no such search, or its record is damaged.
        StorageError: the storage cannot be read.
    """
    reader = reader or RecordReader(storage, name)
    try:
        record = reader.read()
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise SearchError(f"the record of search {name!r} is damaged: {first}") from None
    if record is None:
        raise no_search(name, search_names(storage), f"in {storage.uri}")
    if record.state == "running" and not _runs(storage, record):
        record = interrupted(record)
    return record


def _runs(storage: Storage, record: SearchRecord) -> bool:
    """Whether a record that says that it runs has a living driver."""
    lives = has_living_owner(search_storage(storage, record.name))
    if lives is None:  # of version 0.1.0
        return datetime.now(UTC) - record.updated <= SILENCE
    return lives


def interrupted(record: SearchRecord) -> SearchRecord:
    """The record of a search that ended before its trials did."""
    live = LiveRecord(record)
    live.interrupt()
    return live.record


def search_names(storage: Storage) -> list[str]:
    """The searches of a storage that have a record, in alphabetical order."""
    searches = storage / "searches"
    return sorted(name for name in searches.names() if has_record(searches / name))
