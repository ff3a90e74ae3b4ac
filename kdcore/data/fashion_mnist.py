"""Fashion-MNIST: 70,000 photographs of clothes, 28x28, grey. Xiao et al., arXiv:1708.07747."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcore.data.image_table import RawImages, TableSource
from kdcore.errors import DataError

_PARTS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _find(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def _files(root: Path | None) -> tuple[Path, ...]:
    advice = (
        "set root to a folder with the four IDX files, gzipped or not (Debian's package "
        "dataset-fashion-mnist installs them in /usr/share/datasets/fashion-mnist), or set "
        "download: true to let torchvision download them"
    )
    if root is None:
        raise DataError(f"root is missing, but Fashion-MNIST is read from files; {advice}")
    folders = (root, root / "FashionMNIST" / "raw")  # the second is where torchvision puts them
    for folder in folders:
        found = [_find(folder, name) for name in _PARTS]
        files = tuple(path for path in found if path is not None)
        if len(files) == len(_PARTS):
            return files
        if files:
            missing = [name for name, path in zip(_PARTS, found, strict=True) if path is None]
            raise DataError(f"root is {str(root)!r}, but {', '.join(missing)} is missing; {advice}")
    what = "has no IDX file" if root.is_dir() else "is not a folder"
    raise DataError(f"root is {str(root)!r}, but that {what}; {advice}")


def read_idx(path: Path) -> Tensor:
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Raises:
        DataError: the file is damaged: it has another header or another length.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"damaged IDX file {path}: gzip says {str(error)!r}; download it again"
        ) from None
    # Header: two zero bytes, 8 for unsigned bytes, the number of dimensions, then each as
    # big-endian int32.
    dimensions = content[3] if len(content) >= 4 else 0
    header = 4 + 4 * dimensions
    if content[:3] != b"\x00\x00\x08" or len(content) < header:
        raise DataError(f"damaged IDX file {path}: no header of unsigned bytes; download it again")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    promised = int(np.prod(shape, dtype=np.int64))
    if len(content) - header != promised:
        raise DataError(
            f"damaged IDX file {path}: it holds {len(content) - header} values, but its header "
            f"promises {promised} ({'x'.join(map(str, shape))}); download it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].reshape(shape)


def _read(files: tuple[Path, ...]) -> RawImages:
    images: list[Tensor] = []
    labels: list[Tensor] = []
    is_test: list[Tensor] = []
    for pictures, classes in (files[:2], files[2:]):
        part, part_labels = read_idx(pictures), read_idx(classes)
        fit = part.ndim == 3 and part_labels.ndim == 1 and 0 < len(part) == len(part_labels)
        if not fit:
            raise DataError(
                f"damaged IDX file {classes}: {tuple(part_labels.shape)} labels do not fit the "
                f"{tuple(part.shape)} images of {pictures}; download it again"
            )
        if int(part_labels.max()) >= len(SOURCE.class_names):
            raise DataError(
                f"damaged IDX file {classes}: label {int(part_labels.max())}, but there are "
                f"{len(SOURCE.class_names)} classes; download it again"
            )
        if images and part.shape[1:] != images[0].shape[2:]:
            raise DataError(
                f"damaged IDX file {pictures}: its images are {tuple(part.shape[1:])}, those of "
                f"{files[0]} {tuple(images[0].shape[2:])}; download it again"
            )
        images.append(part[:, None])
        labels.append(part_labels.long())
        is_test.append(torch.full((len(part),), pictures.name.startswith("t10k")))
    return RawImages(torch.cat(images), torch.cat(labels), torch.cat(is_test))


def _download(root: Path) -> None:
    from torchvision.datasets import FashionMNIST  # only needed for downloads

    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"download to {str(root)!r} failed: {error}; try again, or put the four IDX "
            "files there yourself"
        ) from None


SOURCE = TableSource(
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    crop_padding=2,
    flip=True,
    files=_files,
    read=_read,
    download=_download,
)
