"""The record of a search in its storage: a snapshot, and a log of what has changed since.

`record/SESSION.ROUND.json` is a snapshot of the whole record, `record/SESSION.ROUND.PART.jsonl` a
part of the log: one JSON object a line, with the fields of the search or of one trial that have
changed. Who reads takes the newest snapshot and its parts. A session has its owner's number, so
nobody reads what a process still writes that has lost its search. When the log has become as long
as the snapshot, the next round begins, so all that is ever written grows with the number of events.
"""

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from search.errors import StorageError
from search.record.live_record import ADDED, LiveRecord
from search.record.owner import Owner
from search.record.record import SearchRecord, TrialRecord
from search.record.storage import Storage, search_storage

_FOLDER = "record"
_OLD_FILE = "search.json"  # the whole record, as version 0.1.0 wrote it again at each event

# A snapshot of a small search is not worth much; a bucket writes a part again for each addition.
_SHORTEST_LOG_BYTES = 2**20
_PART_BYTES = 2**18

_BUCKET_SECONDS = 2.0

# While somebody reads, the next snapshot may take the place of the one that he has found.
_TRIES = 5


class _Round(NamedTuple):
    """A snapshot and its log."""

    session: int
    number: int

    @property
    def snapshot(self) -> str:
        return f"{self.session:06d}.{self.number:06d}.json"

    def part(self, number: int) -> str:
        return f"{self.session:06d}.{self.number:06d}.{number:06d}.jsonl"


def _newest(names: list[str]) -> _Round | None:
    """The last round that has a snapshot."""
    found = [re.fullmatch(r"(\d+)\.(\d+)\.json", name) for name in names]
    return max((_Round(int(m[1]), int(m[2])) for m in found if m), default=None)


def has_record(search: Storage) -> bool:
    """Whether a record was written below a search's own storage."""
    return _newest((search / _FOLDER).names()) is not None or search.exists(_OLD_FILE)


class RecordLog:
    """Writes a search's record.

    Args:
        storage: where searches are kept.
        search: its name.
        owner: this process as the search's; none: nobody runs it.

    Attributes:
        pause: seconds to leave between two calls, so that a bucket gets no file for each event.

    Raises:
        StorageError: the storage cannot be read.
    """

    def __init__(self, storage: Storage, search: str, owner: Owner | None = None) -> None:
        self.pause = _BUCKET_SECONDS if storage.local is None else 0.0
        self._search, self._owner = search_storage(storage, search), owner
        self._folder = self._search / _FOLDER
        last = _newest(self._folder.names()) or _Round(0, 0)
        session = last.session if owner is None else owner.number
        self._round = _Round(session, last.number if session == last.session else 0)
        # Of the present round: the snapshot's length, the log's, and the last part of it.
        self._snapshot = self._logged = -1
        self._part, self._tail = 0, b""
        self._waiting = b""

    def write(self, live: LiveRecord, *, whole: bool = False) -> None:
        """Writes what has changed, with the present time; after an error, the next call does.

        Args:
            live: the record; all that it says of changes is told to this log alone.
            whole: whether to write a snapshot, which is read faster.

        Raises:
            LostSearchError: another process has taken the search; nothing is written.
            StorageError: the storage cannot be written to.
        """
        if self._owner is not None:
            self._owner.check()
        live.update(updated=datetime.now(UTC))
        self._waiting += "".join(f"{change}\n" for change in live.changes()).encode()
        longest = max(_SHORTEST_LOG_BYTES, self._snapshot)
        if whole or self._snapshot < 0 or self._logged + len(self._waiting) > longest:
            self._begin_round(live.record)
        else:
            self._add()

    def _begin_round(self, record: SearchRecord) -> None:
        content = record.model_dump_json().encode()
        following = _Round(self._round.session, self._round.number + 1)
        self._folder.write(following.snapshot, content)
        self._round, self._snapshot, self._logged = following, len(content), 0
        self._part, self._tail, self._waiting = 1, b"", b""
        with suppress(StorageError):  # the next round removes them
            for name in self._folder.names():
                if _precedes(name, following):
                    self._folder.remove(name)
            if self._search.exists(_OLD_FILE):
                self._search.remove(_OLD_FILE)

    def _add(self) -> None:
        if len(self._tail) > _PART_BYTES:
            self._part, self._tail = self._part + 1, b""
        self._folder.extend(self._round.part(self._part), self._tail, self._waiting)
        self._tail += self._waiting
        self._logged += len(self._waiting)
        self._waiting = b""


def _precedes(name: str, last: _Round) -> bool:
    """Whether a file, even one that was not finished, is of an earlier round."""
    numbers = re.match(r"(\d+)\.(\d+)\.", name)
    return numbers is not None and _Round(int(numbers[1]), int(numbers[2])) < last


class RecordReader:
    """Reads a search's record again and again, each time only what is new.

    Args:
        storage: where searches are kept.
        search: its name.
    """

    def __init__(self, storage: Storage, search: str) -> None:
        self._search = search_storage(storage, search)
        self._folder = self._search / _FOLDER
        self._round: _Round | None = None
        self._part, self._position = 1, 0
        self._head: dict[str, Any] = {}
        self._trials: dict[int, TrialRecord] = {}

    def read(self) -> SearchRecord | None:
        """The record as its driver has left it; none where there is none.

        Raises:
            StorageError: the storage cannot be read.
            ValueError: the record is damaged.
        """
        tries = 0
        while True:
            names = self._folder.names()
            newest = _newest(names)
            if newest is None:
                if not self._search.exists(_OLD_FILE):
                    return None
                return SearchRecord.model_validate_json(self._search.read(_OLD_FILE))
            try:
                if newest != self._round:
                    self._open(newest)
                self._read_log(set(names))
                break
            except (StorageError, ValueError):
                self._round = None  # what was read of it is not whole
                tries += 1
                if tries == _TRIES or _newest(self._folder.names()) == newest:
                    raise
        trials = tuple(self._trials[number] for number in sorted(self._trials))
        return SearchRecord.model_validate(self._head).model_copy(update={"trials": trials})

    def _open(self, newest: _Round) -> None:
        content = self._folder.read(newest.snapshot)
        record = SearchRecord.model_validate_json(content)
        self._head = record.model_dump(mode="json", exclude={"trials"})
        self._trials = {trial.number: trial for trial in record.trials}
        self._round, self._part, self._position = newest, 1, 0

    def _read_log(self, names: set[str]) -> None:
        """Takes in the lines that have come; one that is not whole yet is left for later."""
        assert self._round is not None
        changed: dict[int, dict[str, Any]] = {}
        while (part := self._round.part(self._part)) in names:
            content = self._folder.read_from(part, self._position)
            end = content.rfind(b"\n") + 1
            for line in content[:end].splitlines():
                self._take(json.loads(line), changed)
            self._position += end
            if self._round.part(self._part + 1) not in names:
                break
            self._part, self._position = self._part + 1, 0
        for number, fields in changed.items():
            self._trials[number] = TrialRecord.model_validate(fields)

    def _take(self, change: dict[str, Any], changed: dict[int, dict[str, Any]]) -> None:
        """Adds a line's fields to those of the search, or of its changed trials."""
        if "search" in change:
            self._head |= change["search"]
            return
        number = change.pop("trial")
        if number not in changed:
            known = self._trials.get(number)
            changed[number] = {"number": number} if known is None else dict(known)
        fields = changed[number]
        for name, value in change.items():
            if name.startswith(ADDED):
                whole = name.removeprefix(ADDED)
                fields[whole] = (*fields[whole], *value)
            else:
                fields[name] = value
