"""Arrow files that are created once, memory-mapped, and shared by a machine's processes."""

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
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def open_or_make(
    path: Path,
    what: str,
    make: Callable[[], pa.RecordBatch],
    read: Callable[[pa.RecordBatch], T],
) -> T:
    """Reads a file, and creates it if it is missing or damaged, while other processes wait.

    Args:
        path: of the file; must change with everything that the file is made from.
        what: what the file is, for a warning about damage.
        make: creates its content.
        read: interprets it; columns are read-only views of the mapped file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            try:
                return read(_mapped(path))
            except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
                warnings.warn(
                    f"{what} {path} is damaged ({error}); it is created again", stacklevel=2
                )
        _write(path, make())
        return read(_mapped(path))


def metadata_of(batch: pa.RecordBatch) -> dict[str, str]:
    """The metadata of the schema, as text."""
    metadata = batch.schema.metadata or {}
    return {name.decode(): text.decode() for name, text in metadata.items()}


def tensor_of(values: np.ndarray) -> Tensor:
    """A tensor on memory that may be read-only; torch cannot tell, so never write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values)


def _write(path: Path, batch: pa.RecordBatch) -> None:
    """Writes a file atomically, as one record batch, so that each column is one buffer."""
    partial = path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as sink, ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    os.replace(partial, path)


def _mapped(path: Path) -> pa.RecordBatch:
    return ipc.open_file(pa.memory_map(str(path))).get_batch(0)
