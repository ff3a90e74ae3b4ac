"""The image table: a data set as one memory-mapped Arrow file, shared by a machine's processes."""

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from pyarrow import ipc
from torch import Tensor

from kdcore.data.source import RawImages, Source

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ImageTable:
    """A data set on disk; the tensors are views into the mapped file.

    Args:
        images: [N, C, H, W], uint8; read-only.
        labels: [N], int64; read-only.
        is_test: [N], bool.
        digest: of images, labels and splits; the same data has the same digest everywhere.
    """

    images: Tensor
    labels: Tensor
    is_test: Tensor
    digest: str


def open_image_table(name: str, source: Source, root: Path | None, workspace: Path) -> ImageTable:
    """Opens a data set's table, and makes it where it is missing, damaged or older than its files.

    Args:
        name: the data set's name.
        source: how it is read.
        root: its folder, or none where the data are bundled.
        workspace: the table lies in `data/` under this folder.

    Raises:
        ValueError: the data set's files are missing or damaged.
    """
    files = source.files(root)
    identity = [
        _SCHEMA_VERSION,
        [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files],
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    path = workspace / "data" / f"{name}-{key}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            try:
                return _read(path)
            except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
                warnings.warn(
                    f"image table {path} is damaged ({error}); making it again", stacklevel=2
                )
        _write(path, source.read(files))
        return _read(path)


def _write(path: Path, raw: RawImages) -> None:
    """Writes the table whole or not at all, as one record batch, so that a column is one buffer."""
    images = raw.images.contiguous().numpy()
    labels = raw.labels.numpy()
    is_test = raw.is_test.numpy()
    digest = hashlib.sha256()
    for array in (np.array(images.shape), images, labels, is_test):
        digest.update(np.ascontiguousarray(array).tobytes())
    size = images[0].size
    columns = {
        "image": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(size), len(images), [None, pa.py_buffer(images)]
        ),
        "label": pa.array(labels),
        "split": pa.array(np.where(is_test, "test", "train")).dictionary_encode(),
    }
    batch = pa.record_batch(columns).replace_schema_metadata(
        {"shape": json.dumps(images.shape[1:]), "digest": digest.hexdigest()[:16]}
    )
    partial = path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as sink, ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    os.replace(partial, path)


def _read(path: Path) -> ImageTable:
    batch = ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    metadata = batch.schema.metadata or {}
    shape = json.loads(metadata[b"shape"])
    pixels = np.frombuffer(batch["image"].buffers()[1], dtype=np.uint8)
    splits = batch["split"]
    with warnings.catch_warnings():
        # The mapping is read-only and torch has no read-only tensors. Nothing here writes to them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return ImageTable(
            torch.from_numpy(pixels).reshape(batch.num_rows, *shape),
            torch.from_numpy(batch["label"].to_numpy()),
            torch.from_numpy(np.asarray(splits.dictionary_decode()) == "test"),
            metadata[b"digest"].decode(),
        )
