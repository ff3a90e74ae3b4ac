"""Looks at the test split: each is written down, so that all can see how often one was taken.

Whoever tests many students and keeps the best has chosen on the test split, and its accuracy is too
high. A look is a small file of its own, never rewritten, in a folder for its images: no lock is
needed, and no search has to be read to count them.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from kdcore import DataConfig
from search.errors import SearchError
from search.record.record import SearchRecord
from search.record.storage import Storage

# Data settings that leave the held-out and the test images as they are.
_IRRELEVANT = {"download", "views", "view_seed", "augmentation", "decoded_gb"}


class Look(BaseModel):
    """One opening of the test split.

    Args:
        when: it was opened.
        by: the command: `best`, `confirm` or `reproduce`.
        search: its name.
        students: the folders of their checkpoints, relative to the storage.
    """

    model_config = ConfigDict(frozen=True)  # a later version may know more of a look

    when: datetime
    by: str
    search: str
    students: tuple[str, ...]


def images_of(data: DataConfig) -> dict[str, object]:
    """The settings that decide which images are held out and tested, and how they are shown."""
    return data.model_dump(mode="json", exclude=_IRRELEVANT)


def record_look(
    storage: Storage, record: SearchRecord, *, by: str, students: Iterable[str]
) -> Look:
    """Writes a look down; to be called before the first student is tested.

    Args:
        storage: of the search.
        record: the search.
        by: the command.
        students: the folders of the checkpoints that are tested.

    Raises:
        StorageError: the storage cannot be written to.
    """
    look = Look(when=datetime.now(UTC), by=by, search=record.name, students=tuple(students))
    name = f"{look.when:%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}.json"
    _folder(storage, record.experiment.data).write(name, look.model_dump_json(indent=1).encode())
    return look


def looks_at(storage: Storage, data: DataConfig) -> tuple[Look, ...]:
    """The looks of all searches of a storage at the test split of this data, the first one first.

    Raises:
        SearchError: a look's file is damaged.
        StorageError: the storage cannot be read.
    """
    folder = _folder(storage, data)
    looks = []
    for name in sorted(name for name in folder.names() if name.endswith(".json")):
        try:
            looks.append(Look.model_validate_json(folder.read(name)))
        except ValidationError as error:
            reason = str(error).splitlines()[0]
            raise SearchError(
                f"{folder.uri}/{name} is damaged, but must be a look at the test split: {reason}; "
                f"restore or remove it"
            ) from None
    return tuple(looks)


def looks_in_words(looks: Sequence[Look]) -> str:
    """How often the test split was looked at, and at how many students."""
    if not looks:
        return "test split not looked at yet for this task"
    times = "once" if len(looks) == 1 else f"{len(looks)} times"
    students = len({student for look in looks for student in look.students})
    different = "1 student" if students == 1 else f"{students} different students"
    return f"test split looked at {times} for this task, at {different}"


def _folder(storage: Storage, data: DataConfig) -> Storage:
    # However they are cropped and judged, it is the same images that are looked at.
    other = ("evaluation", "judge", "unlabelled")
    images = {key: value for key, value in images_of(data).items() if key not in other}
    content = json.dumps(images, sort_keys=True).encode()
    return storage / f"looks/{hashlib.sha256(content).hexdigest()[:16]}"
