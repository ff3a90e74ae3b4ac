"""What is made once and kept: Arrow files, mapped and shared by a machine's processes."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from pyarrow import ipc
from torch import Tensor

T = TypeVar("T")


def key_of(identity: object) -> str:
    """A short name for a tree of plain values."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def open_or_make(
    path: Path,
    what: str,
    make: Callable[[], pa.RecordBatch],
    read: Callable[[pa.RecordBatch], T],
) -> T:
    """Reads a kept file, and makes it where it is missing or damaged. Other processes wait.

    Args:
        path: of the file; its name must change with what it is made from.
        what: what the file is, for a message about damage.
        make: gives its content.
        read: interprets it; columns are views of the mapped file, which is never written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            try:
                return read(_mapped(path))
            except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
                warnings.warn(f"{what} {path} is damaged ({error}); making it again", stacklevel=2)
        _write(path, make())
        return read(_mapped(path))


def metadata_of(batch: pa.RecordBatch) -> dict[str, str]:
    """The texts that were written beside the columns."""
    metadata = batch.schema.metadata or {}
    return {name.decode(): text.decode() for name, text in metadata.items()}


def tensor_of(values: np.ndarray) -> Tensor:
    """A tensor on memory that may be read-only, which torch does not know; never write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values)


def _write(path: Path, batch: pa.RecordBatch) -> None:
    """Writes the file whole or not at all, as one record batch, so that a column is one buffer."""
    partial = path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as sink, ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    os.replace(partial, path)


def _mapped(path: Path) -> pa.RecordBatch:
    return ipc.open_file(pa.memory_map(str(path))).get_batch(0)
