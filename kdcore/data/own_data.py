"""Data sets of plugins: a `Source`, or a function that gives torch data sets of images and labels.

The function takes the root of the data, or None, and returns two `torch.utils.data.Dataset`, for
training and for the test, of images of one size. An item is an image and its class:

- the image a PIL image; a uint8 array [H, W] or [H, W, C]; or a tensor [C, H, W], uint8 or floats
  from 0 to 1;
- the class an integer from 0 to K-1. An attribute `classes` of the training data names the K
  classes, as torchvision's data sets do; else they are numbered.

It is read once, into an image table, and again when the code or a file below the root changes.
Views are those of small images: crops after padding by an eighth of the shorter side, mirrored half
of the time; `augmentation` in an experiment sets others.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore.contract import plugged
from kdcore.contract.plugin import Kind
from kdcore.contract.plugin_faults import beat
from kdcore.data.arrow_files import key_of
from kdcore.data.config import DataConfig
from kdcore.data.image_table import ImageTable, RawImages, open_table
from kdcore.data.source import Collection, Source
from kdcore.errors import DataError

_SCHEMA_VERSION = 1
_MOST_BYTES = 4 * 2**30  # of pixels, which trials hold in memory


def own_source(name: str, given: Any) -> Source:
    """The source of a plugin's data set.

    Raises:
        DataError: it is neither a `Source` nor a function.
    """
    if isinstance(given, Source):
        return _VersionedSource(name=name, source=given, download=given.download)
    if not callable(given):
        raise DataError(
            f"the data set {name} is {given!r:.60}, but must be a Source, or a function of the "
            f"root that gives the torch data sets for training and test"
        )
    return OwnSource(name=name, function=given)


@dataclass(frozen=True, kw_only=True)
class _VersionedSource(Source):
    """A plugin's source as it is, with a cache of its own for each version of the code.

    Args:
        name: of the data set.
        source: opens it.
    """

    name: str
    source: Source

    def open(self, config: DataConfig, workspace: Path) -> Collection:
        code = plugged.digest_of_name(Kind.DATA, self.name)
        return self.source.open(config, workspace / "data" / code)


@dataclass(frozen=True, kw_only=True)
class OwnSource(Source):
    """Opens two torch data sets as an image table.

    Args:
        name: of the data set.
        function: makes them, of the root.
    """

    name: str
    function: Callable[[Path | None], Any]

    def open(self, config: DataConfig, workspace: Path) -> ImageTable:
        root = config.root
        assert not isinstance(root, str)  # DataConfig refuses URIs here
        if root is not None and not root.exists():
            raise DataError(f"root is {str(root)!r}, but there is no such folder")
        files = [] if root is None else sorted(each for each in root.rglob("*") if each.is_file())
        code = plugged.digest_of_name(Kind.DATA, self.name)
        stats = [(file, file.stat()) for file in files]
        identity = [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]
        key = key_of([_SCHEMA_VERSION, code, str(root), identity])
        path = workspace / "data" / f"{config.name}-{key}.arrow"
        beside = path.with_suffix(".classes")
        if not beside.exists():
            path.unlink(missing_ok=True)

        def read() -> RawImages:
            raw, names = self._read(root)
            partial = beside.with_suffix(".partial-classes")
            partial.write_text("\n".join(names))
            partial.replace(beside)
            return raw

        table = open_table(
            path,
            read,
            class_names=(),
            view_seed=config.view_seed,
            padding_of=lambda height, width: min(height, width) // 8,
            flip=True,
            steps=config.steps(),
        )
        return replace(table, class_names=tuple(beside.read_text().split("\n")))

    def _data_sets(self, root: Path | None) -> tuple[Any, Any]:
        both = self.function(root)
        if not isinstance(both, tuple) or len(both) != 2 or not all(map(_has_items, both)):
            raise DataError(
                f"the data set {self.name} gives {both!r:.60}, but must give two torch data sets, "
                f"for training and test, each with len() and items"
            )
        return both

    def _read(self, root: Path | None) -> tuple[RawImages, tuple[str, ...]]:
        """All images, and the names of the classes."""
        both = self._data_sets(root)
        train, test = both
        named = getattr(train, "classes", None)
        classes = None if named is None else len(named)
        if not len(train) or not len(test):
            raise DataError(
                f"the data set {self.name} has {len(train)} images for training and {len(test)} "
                f"for the test, but needs some of both"
            )
        images: Tensor | None = None
        labels = torch.empty(len(train) + len(test), dtype=torch.int64)
        for number in range(len(labels)):
            beat()
            is_test = number >= len(train)
            part, position = ("test", number - len(train)) if is_test else ("train", number)
            place = f"image {position} of {part} of {self.name}"
            item = both[is_test][position]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise DataError(
                    f"{place} is {type(item).__name__}, but must be a pair, an image and its label"
                )
            image = _pixels(item[0], place)
            labels[number] = _label(item[1], place, classes)
            if images is None:
                size = len(labels) * image.numel()
                if size > _MOST_BYTES:
                    raise DataError(
                        f"{self.name} has {size / 2**30:.1f} GiB of pixels, but a data set of a "
                        f"plugin at most {_MOST_BYTES // 2**30}; write it as a folder of images, "
                        f"or as a Source"
                    )
                images = torch.empty(len(labels), *image.shape, dtype=torch.uint8)
            if image.shape != images.shape[1:]:
                raise DataError(
                    f"{place} has the shape {tuple(image.shape)}, but the first one "
                    f"{tuple(images.shape[1:])}; all must have one size"
                )
            images[number] = image
        assert images is not None
        counts = labels[: len(train)].bincount(minlength=classes or int(labels.max()) + 1)
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty:
            raise DataError(
                f"{self.name} has no image of class {empty[0]} for training; number the classes "
                f"from 0 without a gap"
            )
        if len(counts) < 2:
            raise DataError(f"{self.name} has one class, but needs at least 2")
        names = range(len(counts)) if named is None else named
        return (
            RawImages(images, labels, torch.arange(len(labels)) >= len(train)),
            tuple(str(name).replace("\n", " ") for name in names),
        )


def _has_items(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _label(value: Any, place: str, classes: int | None) -> int:
    if isinstance(value, Tensor | np.ndarray) and value.size and value.ndim == 0:
        value = value.item()
    top = "K-1" if classes is None else str(classes - 1)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise DataError(
            f"{place} has the label {value!r:.40}, but every image needs an integer from 0 to {top}"
        )
    if value < 0 or (classes is not None and value >= classes):
        raise DataError(f"{place} has the label {value}, but labels go from 0 to {top}")
    return int(value)


def _pixels(image: Any, place: str) -> Tensor:
    """[C, H, W], uint8."""
    if hasattr(image, "convert") and hasattr(image, "mode"):  # of PIL
        grey = image.mode in ("1", "L", "I;16", "LA")
        image = np.array(image.convert("L" if grey else "RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim in (2, 3):
            planes = image[..., None] if image.ndim == 2 else image
            image = torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))
        else:
            raise DataError(
                f"{place} is an array of {image.dtype} with {image.ndim} dimensions, but must be "
                f"uint8, [H, W] or [H, W, C]"
            )
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise DataError(
            f"{place} is {type(image).__name__}{list(getattr(image, 'shape', []))}, but must be a "
            f"PIL image, a uint8 array, or a tensor [C, H, W]"
        )
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"{place} has values from {low:.3g} to {high:.3g}, but floats go from 0 to 1; "
                f"leave the normalisation out, kdsearch does that"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise DataError(f"{place} has the type {image.dtype}, but must be uint8, or floats 0 to 1")
    pixels: Tensor = image
    return pixels
