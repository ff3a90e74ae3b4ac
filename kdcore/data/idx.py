"""Data sets in four IDX files, the format of MNIST: http://yann.lecun.com/exdb/mnist."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcore.data.image_table import TableSource
from kdcore.data.published_files import AGAIN, Part, PublishedFiles, content_of
from kdcore.errors import DataError

_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_idx(path: Path) -> Tensor:
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Raises:
        DataError: the file is damaged: it has another header or another length.
    """
    content = content_of(path)
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"damaged IDX file {path}: gzip says {str(error)!r}; {AGAIN}") from None
    # Header: two zero bytes, 8 for unsigned bytes, the number of dimensions, then each as
    # big-endian int32.
    dimensions = content[3] if len(content) >= 4 else 0
    header = 4 + 4 * dimensions
    if content[:3] != b"\x00\x00\x08" or len(content) < header:
        raise DataError(f"damaged IDX file {path}: no header of unsigned bytes; {AGAIN}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    promised = int(np.prod(shape, dtype=np.int64))
    if len(content) - header != promised:
        raise DataError(
            f"damaged IDX file {path}: it holds {len(content) - header} values, but its header "
            f"promises {promised} ({'x'.join(map(str, shape))}); {AGAIN}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].reshape(shape)


def idx_source(
    title: str, reader: str, class_names: tuple[str, ...], *, flip: bool, hint: str = ""
) -> TableSource:
    """A data set of grey images in IDX files.

    Args:
        title: its name in messages.
        reader: torchvision's class, which is also the name of its folder.
        class_names: in the order of their labels.
        flip: whether to mirror images at random.
        hint: where else than from torchvision the files are to be had.
    """
    files = PublishedFiles(
        title=title,
        kind="IDX file",
        names=_NAMES,
        below=f"{reader}/raw",
        reader=reader,
        gzipped=True,
        hint=hint,
    )

    def part(images: Path, labels: Path, *, is_test: bool) -> Part:
        pixels = read_idx(images)
        if pixels.ndim != 3:
            raise files.damaged(images, f"{tuple(pixels.shape)} is not the shape of grey images")
        return Part(pixels[:, None], read_idx(labels), images, labels, is_test)

    def parts(paths: tuple[Path, ...]) -> list[Part]:
        return [part(*paths[:2], is_test=False), part(*paths[2:], is_test=True)]

    return files.source(class_names, parts, crop_padding=2, flip=flip)
