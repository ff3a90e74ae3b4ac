"""The contract of a data set: what it says about itself, and how it is opened."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdcore.data.config import DataConfig
from kdcore.data.split import Split

PixelStatistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of pixels, for each channel, on the scale 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Collection(ABC):
    """All images of a data set, before they are split. An image's id is its position in here.

    Args:
        labels: [N], int64, 0 to K-1.
        is_test: [N], bool; the test split. The rest is the training part.
        class_names: the K classes in the order of their labels.
        in_channels: channels of the images.
        image_size: height and width in pixels.
        digest: of images, labels and splits; the same data has the same digest everywhere.
    """

    labels: Tensor
    is_test: Tensor
    class_names: tuple[str, ...]
    in_channels: int
    image_size: tuple[int, int]
    digest: str

    @abstractmethod
    def split(self, positions: Tensor) -> Split:
        """The images at these positions [n], int64, as a part of their own."""

    @abstractmethod
    def statistics(self, positions: Tensor) -> PixelStatistics:
        """Of the images at these positions [n], int64, unaugmented."""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Opens a data set; the file that is named like it defines one as `SOURCE`.

    Args:
        download: fetches its files into a root folder; absent where there is nothing to fetch.
    """

    download: Callable[[Path], None] | None = None

    @abstractmethod
    def open(self, config: DataConfig, workspace: Path) -> Collection:
        """Opens the data set; what takes long is done once and kept in `data/` of the workspace.

        Raises:
            DataError: files are missing or damaged.
        """
