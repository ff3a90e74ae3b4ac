"""What is done to pixels before a network sees them."""

from statistics import fmean
from typing import NamedTuple


class Normalization(NamedTuple):
    """The mean that is subtracted, and the deviation that the pixels are then divided by.

    Args:
        mean: for each channel, on the scale 0 to 1.
        std: for each channel, on the scale 0 to 1, > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def for_channels(self, channels: int) -> "Normalization":
        """The same for images of so many channels: gray ones get the average of the colours'."""
        if channels == len(self.mean) or channels != 1:
            return self
        return Normalization((fmean(self.mean),), (fmean(self.std),))
