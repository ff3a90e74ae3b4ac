"""The record of a search as a file in its storage."""

from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from kdcore.errors import did_you_mean
from search.errors import SearchError, StorageError
from search.record.record import SearchRecord
from search.record.storage import Storage

# A running search writes its record at least every half minute; one that is silent has died.
HEARTBEAT = timedelta(seconds=30)
SILENCE = timedelta(minutes=3)


def search_storage(storage: Storage, name: str) -> Storage:
    return storage / f"searches/{name}"


def write_record(storage: Storage, record: SearchRecord) -> SearchRecord:
    """Writes a search's record with the present time; returns what was written."""
    record = record.model_copy(update={"updated": datetime.now(UTC)})
    content = record.model_dump_json(indent=1).encode()
    search_storage(storage, record.name).write("search.json", content)
    return record


def read_record(storage: Storage, name: str) -> SearchRecord:
    """Reads a search's record. A search whose driver has fallen silent is interrupted.

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
    if record.state == "running" and datetime.now(UTC) - record.updated > SILENCE:
        record = interrupted(record)
    return record


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
