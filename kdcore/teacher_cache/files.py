"""Files of cached outputs: Arrow, memory-mapped, with checksums."""

import json
import math
import mmap
import os
import uuid
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import ipc
from torch import Tensor

FOLDER = "teacher_cache"

# Inode, bytes and time of each file whose checksums this process has verified.
_verified: dict[Path, tuple[int, int, int]] = {}


@dataclass(frozen=True)
class OutputFile:
    """A group's outputs for one view, mapped into memory.

    Args:
        columns: by name, [N, ...].
        seconds: that the pass took which computed them, with other groups.
    """

    columns: Mapping[str, Tensor]
    seconds: float


def reserved_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.memmap:
    """A new file as an array. A full disk is an OSError here, not a bus error on writing."""
    with path.open("wb") as file:
        size = np.dtype(dtype).itemsize * math.prod(shape)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)


def write_outputs(path: Path, columns: Mapping[str, np.memmap], key: str, seconds: float) -> None:
    """Writes a file atomically, as one record batch, so that each column is one buffer."""
    buffers = {name: pa.py_buffer(values) for name, values in columns.items()}
    arrays = [
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(values[0].nbytes), len(values), [None, buffers[name]]
        )
        for name, values in columns.items()
    ]
    facts = {
        "key": key,
        "seconds": seconds,
        "columns": {
            name: {
                "dtype": str(values.dtype),
                "shape": values.shape[1:],
                "crc32": zlib.crc32(buffers[name]),
            }
            for name, values in columns.items()
        },
    }
    batch = pa.record_batch(arrays, names=list(columns)).replace_schema_metadata(
        {"facts": json.dumps(facts)}
    )
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with pa.OSFile(str(partial), "wb") as sink, ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_outputs(path: Path, key: str, rows: int) -> OutputFile:
    """Maps a file into memory, and verifies its checksums where this process has not yet.

    Raises:
        ValueError: it is damaged, or has another key.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    identity = status.st_ino, status.st_size, status.st_mtime_ns
    batch = ipc.open_file(pa.py_buffer(mapped)).get_batch(0)
    facts = json.loads((batch.schema.metadata or {})[b"facts"])
    if facts["key"] != key or batch.num_rows != rows:
        raise ValueError(f"key {facts['key']} and {batch.num_rows} rows, not {key} and {rows}")
    columns = {}
    for name, column in facts["columns"].items():
        buffer = batch[name].buffers()[1]
        if _verified.get(path) != identity and zlib.crc32(buffer) != column["crc32"]:
            raise ValueError(f"the checksum of {name} is wrong")
        with warnings.catch_warnings():
            # torch has no read-only tensors; nothing writes to these.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            values = torch.from_numpy(np.frombuffer(buffer, dtype=column["dtype"]))
        columns[name] = values.reshape(rows, *column["shape"])
    _verified[path] = identity
    return OutputFile(columns, facts["seconds"])


def cached_files(root: Path) -> list[Path]:
    """All files of cached outputs below a folder."""
    return sorted(root.glob("**/view*.arrow"))
