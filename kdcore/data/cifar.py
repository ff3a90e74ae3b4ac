"""CIFAR's batch files: pickled dictionaries of pixels and labels.

Torchvision's reader insists on the checksums of the original files and unpickles whatever it is
given. This one takes any files of the format, and executes nothing in them: it has stand-ins for
the few names that a pickled array is made of, and no others.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcore.data.image_table import TableSource
from kdcore.data.published_files import Part, PublishedFiles, content_of

_SHAPE = (3, 32, 32)


def cifar_source(
    title: str,
    reader: str,
    class_names: tuple[str, ...],
    *,
    below: str,
    train: Sequence[str],
    test: str,
    labels: str,
) -> TableSource:
    """A data set in CIFAR's batch files.

    Args:
        title: its name in messages.
        reader: torchvision's class.
        class_names: in the order of their labels.
        below: the folder in the published archive.
        train: names of the training batches.
        test: name of the test batch.
        labels: the key of the labels in a batch.
    """
    files = PublishedFiles(
        title=title,
        kind="CIFAR batch file",
        names=(*train, test),
        below=below,
        reader=reader,
    )

    def part(path: Path) -> Part:
        content = content_of(path)
        try:
            batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        except Exception as error:  # a damaged pickle raises whatever its bytes lead to
            reason = str(error) or repr(error)
            raise files.damaged(path, f"it cannot be unpickled: {reason}") from None
        if not isinstance(batch, dict) or not {"data", labels} <= batch.keys():
            raise files.damaged(path, f"it is no dictionary with 'data' and {labels!r}")
        pixels = batch["data"].values if isinstance(batch["data"], _Array) else None
        if pixels is None or pixels.ndim != 2 or pixels.shape[1] != np.prod(_SHAPE):
            raise files.damaged(path, "its 'data' is no array of rows of 3,072 bytes")
        numbers = batch[labels]
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise files.damaged(path, f"its {labels!r} are no list of integers")
        return Part(
            torch.from_numpy(pixels).reshape(-1, *_SHAPE),
            torch.tensor(numbers),
            path,
            path,
            path.name == test,
        )

    return files.source(
        class_names, lambda paths: list(map(part, paths)), crop_padding=4, flip=True
    )


class _Dtype:
    """Stands for a NumPy dtype, of which only bytes are taken."""

    def __init__(self, name: str, *_: object) -> None:
        if name != "u1":
            raise ValueError(f"an array of {name!r}, but pixels are 'u1'")

    def __setstate__(self, state: object) -> None:
        """Ignores the byte order: bytes have none."""


class _Array:
    """Stands for a NumPy array of bytes while it is unpickled."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self._fill(content, dtype, shape, "F" if is_fortran else "C")

    def _fill(self, content: bytes | str, dtype: object, shape: Sequence[int], order: str) -> None:
        if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
            raise ValueError("an array of something else than bytes")
        # Python 2, which wrote the published files, has one type for bytes and text.
        raw = content.encode("latin1") if isinstance(content, str) else bytes(content)
        values = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order=order)  # type: ignore[call-overload]
        self.values = np.array(values, order="C")  # writable


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(content: bytes, dtype: object, shape: Sequence[int], order: str) -> _Array:
    array = _Array()
    array._fill(content, dtype, shape, order)
    return array


def _encode(text: str, encoding: str) -> bytes:
    """As Python 3 writes bytes with Python 2's protocol."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}, but they are written in 'latin1'")
    return text.encode("latin1")


_STAND_INS: dict[str, Callable[..., object]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, but may hold arrays, lists and numbers only"
            ) from None
