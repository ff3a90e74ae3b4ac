"""A trial's last two checkpoints on the storage, with the reports that led to them.

Two files take turns, and an index, written atomically, has their digests. A crash at any moment
leaves the older one, and a file that is damaged later is noticed and passed over.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kdcore.training.checkpoint import FILE_NAME
from search.record.storage import Storage

_INDEX = "checkpoints.json"


class _Saved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str
    epoch: int


class _Index(BaseModel):
    """The checkpoints, newest first, and the reports up to the newest one's epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    saved: tuple[_Saved, ...] = ()
    reports: tuple[dict[str, Any], ...] = ()


def trial_folder(search: str, number: int) -> str:
    """Where a trial's checkpoints lie, relative to the storage."""
    return f"searches/{search}/trials/{number:03d}"


class Checkpoints:
    """A trial's checkpoints.

    Args:
        storage: where searches are kept.
        folder: the trial's, relative to the storage.
        check: called before anything is written; raises where this process may not.
    """

    def __init__(
        self, storage: Storage, folder: str, check: Callable[[], None] = lambda: None
    ) -> None:
        self._storage, self._folder, self._check = storage, folder, check
        self._index = _Index()

    def save(self, local: Path, reports: list[dict[str, Any]]) -> None:
        """Copies the checkpoint of a local folder to the storage.

        Args:
            local: the folder that `kdcore.distill` writes to.
            reports: of all epochs until now; the checkpoint is that of the last one.

        Raises:
            OSError: the storage cannot be written to; what was saved before is still there.
            LostSearchError: another process has taken the search.
        """
        self._check()
        newest = self._index.saved[:1]
        file = "even.pt" if newest and newest[0].file == "odd.pt" else "odd.pt"
        source = local / FILE_NAME
        self._storage.copy_in(source, f"{self._folder}/{file}")
        saved = _Saved(file=file, sha256=_digest(source), epoch=len(reports))
        index = _Index(saved=(saved, *newest), reports=tuple(reports))
        self._storage.write(f"{self._folder}/{_INDEX}", index.model_dump_json().encode())
        self._index = index

    def restore(self, local: Path) -> list[dict[str, Any]]:
        """Copies the newest checkpoint that is whole into a local folder.

        Returns:
            The reports until then; none where there is no such checkpoint, and the trial begins
            anew.

        Raises:
            OSError: the storage cannot be read.
        """
        local.mkdir(parents=True, exist_ok=True)
        if not self._storage.exists(f"{self._folder}/{_INDEX}"):
            return []
        content = self._storage.read(f"{self._folder}/{_INDEX}")
        try:
            index = _Index.model_validate_json(content)
        except ValidationError:
            return []
        for saved in index.saved:
            if not self._storage.exists(f"{self._folder}/{saved.file}"):
                continue
            self._storage.copy_out(f"{self._folder}/{saved.file}", local / FILE_NAME)
            if _digest(local / FILE_NAME) == saved.sha256:
                # What is saved next takes the place of the other one.
                self._index = _Index(saved=(saved,))
                return list(index.reports[: saved.epoch])
        (local / FILE_NAME).unlink(missing_ok=True)
        return []


def recorded_reports(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """The reports beside a trial's checkpoints; empty if there are no checkpoints.

    Args:
        storage: where searches are kept.
        folder: the trial's, relative to the storage.
    """
    try:
        index = _Index.model_validate_json(storage.read(f"{folder}/{_INDEX}"))
    except (OSError, ValidationError):
        return []
    return list(index.reports)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
