"""Records that a test or benchmark writes, as a search leaves them."""

from search.record.live_record import LiveRecord
from search.record.log import RecordLog
from search.record.owner import Owner
from search.record.record import SearchRecord
from search.record.storage import Storage


def write_record(
    storage: Storage, record: SearchRecord, owner: Owner | None = None
) -> SearchRecord:
    """Writes a search's record whole, with the present time; returns what was written.

    Args:
        storage: where searches are kept.
        record: of the search.
        owner: this process as the search's; none: nobody runs it.

    Raises:
        LostSearchError: another process has taken the search; nothing is written.
        StorageError: the storage cannot be written to.
    """
    live = LiveRecord(record)
    RecordLog(storage, record.name, owner).write(live, whole=True)
    return live.record
