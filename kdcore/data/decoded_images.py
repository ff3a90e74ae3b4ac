"""Decoded images that are kept for all processes of a machine, as far as a budget goes.

The first process that opens the data decodes the first images that fit, at their full size, into a
file; others wait for it. A view is a crop of the same pixels as without the file. Memory holds the
file as long as there is room, so that it is read from the disk only now and then.
"""

import os
import uuid
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kdcore.data.arrow_files import key_of, open_or_make, tensor_of
from kdcore.data.decoding import EncodedImage, opened_image
from kdcore.data.decoding_pool import in_threads
from kdcore.data.kept_pixels import KeptPixels
from kdcore.data.streamed_split import ImageStore, StreamedCollection

_SCHEMA_VERSION = 1
_AT_ONCE = 16  # photographs of 12 megapixels are 36 MB each


@dataclass(frozen=True)
class DecodedImages(ImageStore):
    """A store whose first n images are kept decoded.

    Args:
        store: of all images, encoded.
        path: of the pixels, one image after the other.
        inode: of that file.
        begins: [n], int64, the first byte of each image.
        heights: [n], int64, in pixels.
        widths: likewise.
        checksums: [n], int64, CRC-32 of each image's pixels.
    """

    store: ImageStore
    path: Path
    inode: int
    begins: Tensor
    heights: Tensor
    widths: Tensor
    checksums: Tensor

    def read(self, image_ids: Tensor) -> Iterator[EncodedImage]:
        kept = image_ids < len(self.heights)
        others = self.store.read(image_ids[~kept])
        for image_id, is_kept in zip(image_ids.tolist(), kept.tolist(), strict=True):
            if not is_kept:
                yield next(others)
                continue
            columns = (self.begins, self.heights, self.widths, self.checksums)
            begin, height, width, checksum = (int(column[image_id]) for column in columns)
            pixels = KeptPixels(self.path, self.inode, begin, height, width, checksum)
            yield EncodedImage(f"image {image_id} in {self.path}", pixels)

    def perhaps_transparent(self) -> Tensor:
        return self.store.perhaps_transparent()

    def shuffled(self, image_ids: Tensor) -> Tensor:
        return self.store.shuffled(image_ids)  # as without, so that nothing changes

    def partners(self, image_ids: Tensor, positions: Tensor, drawn: Tensor) -> Tensor:
        return self.store.partners(image_ids, positions, drawn)


def kept_decoded(images: StreamedCollection, gigabytes: float | None) -> StreamedCollection:
    """The same images, of which as many as fit are kept decoded.

    Args:
        images: to keep.
        gigabytes: of pixels at most; None for none.

    Returns:
        The images as they were, with a warning, if the disk has no room for them.

    Raises:
        DataError: an image is damaged.
    """
    if not gigabytes:
        return images
    import PIL  # another version may decode in other bits

    name = f"{images.cache_path.name}-decoded-{images.digest}-"
    key = key_of([_SCHEMA_VERSION, PIL.__version__, gigabytes])
    path = images.cache_path.with_name(f"{name}{key}.pixels")

    def make() -> pa.RecordBatch:
        for other in path.parent.glob(f"{name}*"):  # of another budget
            if not other.name.startswith(path.stem) and other.suffix != ".lock":
                other.unlink(missing_ok=True)
        return _decoded(images, path, int(gigabytes * 1e9))

    def store(batch: pa.RecordBatch) -> DecodedImages:
        heights, widths, checksums = (
            tensor_of(batch[column].to_numpy()) for column in ("height", "width", "crc32")
        )
        sizes = 3 * heights * widths
        status = path.stat()
        if status.st_size != int(sizes.sum()):
            raise ValueError(
                f"{path.name} has {status.st_size} bytes, but must have {int(sizes.sum())}"
            )
        begins = sizes.cumsum(0) - sizes
        return DecodedImages(images.store, path, status.st_ino, begins, heights, widths, checksums)

    try:
        kept = open_or_make(path.with_suffix(".arrow"), "list of decoded images", make, store)
    except OSError as error:
        warnings.warn(
            f"decoded images cannot be kept in {path.parent} ({error}); each is decoded whenever "
            f"it is needed",
            stacklevel=2,
        )
        return images
    return replace(images, store=kept)


def _decoded(images: StreamedCollection, path: Path, room: int) -> pa.RecordBatch:
    """Writes the pixels of the first images that fit; returns what is known of each."""
    rows: list[tuple[int, int, int]] = []
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            for pixels in _in_order(images):
                room -= pixels.nbytes
                if room < 0:
                    break
                file.write(pixels.data)
                rows.append((*pixels.shape[:2], zlib.crc32(pixels.data)))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return pa.record_batch(dict(zip(("height", "width", "crc32"), columns, strict=True)))


def _in_order(images: StreamedCollection) -> Iterator[np.ndarray]:
    """The pixels of all images, [H, W, 3] each, uint8."""

    def decode(image: EncodedImage) -> np.ndarray:
        return np.array(opened_image(image, images.background))

    return in_threads(decode, images.store.read(torch.arange(len(images.labels))), _AT_ONCE)
