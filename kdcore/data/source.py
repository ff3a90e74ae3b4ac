"""The base classes of data sets: a source opens a collection, which is then split."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdcore.data.config import DataConfig
from kdcore.data.split import Split

PixelStatistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of pixels, per channel, on the scale 0 to 1."""

UNLABELLED = -1
"""In the place of the label of an image without a class."""


@dataclass(frozen=True, kw_only=True)
class Collection(ABC):
    """All images of a data set. An image's id is its position in the collection.

    Args:
        labels: [N], int64, 0 to K-1, or `UNLABELLED`.
        is_test: [N], bool: the test split. The others are the training part.
        class_names: the K classes in the order of their labels.
        in_channels: channels of the images.
        image_size: height and width in pixels.
        digest: of images, labels and splits; the same on every machine.
    """

    labels: Tensor
    is_test: Tensor
    class_names: tuple[str, ...]
    in_channels: int
    image_size: tuple[int, int]
    digest: str

    @abstractmethod
    def split(self, positions: Tensor) -> Split:
        """The images at these positions [n], int64."""

    @abstractmethod
    def statistics(self, positions: Tensor) -> PixelStatistics:
        """Mean and deviation of the images at these positions [n], int64, unaugmented."""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Opens a data set. The file of the same name defines it as `SOURCE`.

    Args:
        download: downloads its files to a root folder; None if there is nothing to download.
    """

    download: Callable[[Path], None] | None = None

    @abstractmethod
    def open(self, config: DataConfig, workspace: Path) -> Collection:
        """Opens the data set, with a cache in the folder `data` of the workspace.

        Raises:
            DataError: files are missing or damaged.
        """
