"""The record of a search as a file in its storage."""

from datetime import UTC, datetime

from pydantic import ValidationError

from kdcore.errors import did_you_mean
from search.errors import SearchError, StorageError
from search.record.owner import SILENCE, Owner, has_living_owner
from search.record.record import SearchRecord
from search.record.storage import Storage, search_storage


def write_record(
    storage: Storage, record: SearchRecord, owner: Owner | None = None
) -> SearchRecord:
    """Writes a search's record with the present time; returns what was written.

    Args:
        storage: where searches are kept.
        record: of the search.
        owner: this process as the search's; none: nobody runs it.

    Raises:
        LostSearchError: another process has taken the search; nothing is written.
        StorageError: the storage cannot be written to.
    """
    if owner is not None:
        owner.check()
    record = record.model_copy(update={"updated": datetime.now(UTC)})
    content = record.model_dump_json(indent=1).encode()
    search_storage(storage, record.name).write("search.json", content)
    return record


def read_record(storage: Storage, name: str) -> SearchRecord:
    """Reads a search's record. A search whose driver has died or fallen silent is interrupted.

    Raises:
        SearchError: there is no such search, or its record is damaged.
    """
    names = search_names(storage)
    if name not in names:
        known = f"There are {', '.join(names)}" if names else "There is none yet"
        raise SearchError(f"no search {name!r} in {storage.uri}{did_you_mean(name, names)} {known}")
    try:
        content = search_storage(storage, name).read("search.json")
        record = SearchRecord.model_validate_json(content)
    except (ValidationError, StorageError) as error:
        first = str(error).splitlines()[0]
        raise SearchError(f"the record of search {name!r} is damaged: {first}") from None
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
    trials = tuple(
        trial.model_copy(update={"state": "interrupted"}) if trial.state == "running" else trial
        for trial in record.trials
    )
    return record.model_copy(update={"state": "interrupted", "trials": trials})


def search_names(storage: Storage) -> list[str]:
    """The searches of a storage that have a record, in alphabetical order."""
    searches = storage / "searches"
    return sorted(name for name in searches.names() if searches.exists(f"{name}/search.json"))
