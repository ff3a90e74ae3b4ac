"""Data sets that fit into memory, as one memory-mapped Arrow file each."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kdcore.data.arrow_files import key_of, metadata_of, open_or_make, tensor_of
from kdcore.data.augmentation.steps import Step, padded
from kdcore.data.config import DataConfig
from kdcore.data.source import Collection, PixelStatistics, Source
from kdcore.data.split import TableSplit

_SCHEMA_VERSION = 1

# Values of which mean and deviation are taken in float64, which needs 16 bytes for each. Fashion-
# MNIST has 47 million, and the last bits of its mean are in the keys of cached teacher outputs.
_MOST_AS_FLOATS = 2**26


@dataclass(frozen=True)
class RawImages:
    """Decoded images, before they are written to an image table.

    Args:
        images: [N, C, H, W], uint8.
        labels: [N], int64, 0 to K-1.
        is_test: [N], bool: the test split. The others are the training part.
    """

    images: Tensor
    labels: Tensor
    is_test: Tensor


@dataclass(frozen=True, kw_only=True)
class ImageTable(Collection):
    """A data set whose tensors are views of a memory-mapped file.

    Args:
        images: [N, C, H, W], uint8; read-only.
        view_seed: of the augmentation.
        crop_padding: pixels of black border for random crops.
        flip: whether to mirror images at random.
        steps: of the views in place of crop and flip, if any.
    """

    images: Tensor
    view_seed: int
    crop_padding: int
    flip: bool
    steps: tuple[Step, ...] | None = None

    def split(self, positions: Tensor) -> TableSplit:
        return TableSplit(
            self.images[positions],
            self.labels[positions],
            positions,
            self.view_seed,
            self.crop_padding,
            self.flip,
            self.steps,
        )

    def statistics(self, positions: Tensor) -> PixelStatistics:
        if len(positions) * self.images[0].numel() > _MOST_AS_FLOATS:
            return self._exact_statistics(positions)
        pixels = self.images[positions].transpose(0, 1).flatten(1).double() / 255
        return tuple(pixels.mean(1).tolist()), tuple(pixels.std(1).tolist())

    def _exact_statistics(self, positions: Tensor) -> PixelStatistics:
        """From how often each of the 256 values occurs, which takes little memory."""
        counts = torch.zeros(self.in_channels, 256, dtype=torch.int64)
        for some in torch.split(positions, 2048):
            pixels = self.images[some].transpose(0, 1).flatten(1)
            counts += torch.stack([channel.bincount(minlength=256) for channel in pixels])
        values = torch.arange(256)
        count = counts.sum(1)
        total, squares = (counts * values).sum(1), (counts * values.square()).sum(1)
        mean = total.double() / count
        variance = (squares.double() - total.double() * mean) / (count - 1)
        return tuple((mean / 255).tolist()), tuple((variance.sqrt() / 255).tolist())


@dataclass(frozen=True, kw_only=True)
class TableSource(Source):
    """Opens a data set as an image table.

    Args:
        class_names: the K classes in the order of their labels.
        crop_padding: pixels of black border for random crops; 0 for none.
        flip: whether to mirror images at random.
        files: lists the files below a root folder (or None); they identify the data.
        read: reads these files.
    """

    class_names: tuple[str, ...]
    crop_padding: int
    flip: bool
    files: Callable[[Path | None], tuple[Path, ...]]
    read: Callable[[tuple[Path, ...]], RawImages]

    def open(self, config: DataConfig, workspace: Path) -> ImageTable:
        """Opens the table; creates it if it is missing, damaged or outdated."""
        assert not isinstance(config.root, str)  # DataConfig refuses URIs here
        files = self.files(config.root)
        stats = [(str(file.resolve()), file.stat()) for file in files]
        key = key_of(
            [_SCHEMA_VERSION, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]
        )
        return open_table(
            workspace / "data" / f"{config.name}-{key}.arrow",
            lambda: self.read(files),
            class_names=self.class_names,
            view_seed=config.view_seed,
            padding_of=lambda height, width: self.crop_padding,
            flip=self.flip,
            steps=config.steps(flip=self.flip),
        )


def open_table(
    path: Path,
    read: Callable[[], RawImages],
    *,
    class_names: tuple[str, ...],
    view_seed: int,
    padding_of: Callable[[int, int], int],
    flip: bool,
    steps: tuple[Step, ...] | None = None,
) -> ImageTable:
    """Opens the table in a file; creates it if it is missing or damaged.

    Args:
        path: of the file; must change with everything that the table is made from.
        read: reads the images.
        class_names: the K classes in the order of their labels.
        view_seed: of the augmentation.
        padding_of: pixels of black border for images of this height and width.
        flip: whether to mirror images at random.
        steps: of the views in place of crop and flip, if any.
    """

    def table(batch: pa.RecordBatch) -> ImageTable:
        metadata = metadata_of(batch)
        channels, height, width = json.loads(metadata["shape"])
        pixels = np.frombuffer(batch["image"].buffers()[1], dtype=np.uint8)
        is_test = np.asarray(batch["split"].dictionary_decode()) == "test"
        return ImageTable(
            images=tensor_of(pixels).reshape(batch.num_rows, channels, height, width),
            labels=tensor_of(batch["label"].to_numpy()),
            is_test=tensor_of(is_test),
            class_names=class_names,
            in_channels=channels,
            image_size=(height, width),
            digest=metadata["digest"],
            view_seed=view_seed,
            crop_padding=padding_of(height, width),
            flip=flip,
            steps=steps and padded(steps, padding_of(height, width)),
        )

    return open_or_make(path, "image table", lambda: _batch_of(read()), table)


def _batch_of(raw: RawImages) -> pa.RecordBatch:
    images = raw.images.contiguous().numpy()
    labels = raw.labels.numpy()
    is_test = raw.is_test.numpy()
    digest = hashlib.sha256()
    for array in (np.array(images.shape), images, labels, is_test):
        digest.update(np.ascontiguousarray(array).data)
    size = images[0].size
    columns = {
        "image": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(size), len(images), [None, pa.py_buffer(images)]
        ),
        "label": pa.array(labels),
        "split": pa.array(np.where(is_test, "test", "train")).dictionary_encode(),
    }
    return pa.record_batch(columns).replace_schema_metadata(
        {"shape": json.dumps(images.shape[1:]), "digest": digest.hexdigest()[:16]}
    )
