"""The contract of a data set: what it says about itself, and how its images are read once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class RawImages:
    """A data set in memory, on its way into the image table.

    Args:
        images: [N, C, H, W], uint8.
        labels: [N], int64, 0 to K-1.
        is_test: [N], bool; the test split. The rest is the training part.
    """

    images: Tensor
    labels: Tensor
    is_test: Tensor


@dataclass(frozen=True)
class Source:
    """A data set that can be searched on; each file of this folder that reads one defines `SOURCE`.

    Args:
        summary: one line for people.
        class_names: the K classes in the order of their labels.
        crop_padding: pixels of black border that a random crop may reach into; 0 switches crops
            off.
        flip: whether a mirrored image keeps its class.
        files: the files that will be read, for a root folder (or none); they identify the data.
        read: reads those files.
        download: fetches them into a root folder; absent where there is nothing to fetch.
    """

    summary: str
    class_names: tuple[str, ...]
    crop_padding: int
    flip: bool
    files: Callable[[Path | None], tuple[Path, ...]]
    read: Callable[[tuple[Path, ...]], RawImages]
    download: Callable[[Path], None] | None = None
