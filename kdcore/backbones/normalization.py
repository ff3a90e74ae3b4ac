"""Normalisation of pixels."""

from statistics import fmean
from typing import NamedTuple


class Normalization(NamedTuple):
    """Mean and standard deviation of pixels.

    Args:
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1, > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def for_channels(self, channels: int) -> "Normalization":
        """For grey images, the average over channels; that of grey images for each channel;
        otherwise unchanged."""
        if len(self.mean) == 1:
            return Normalization(self.mean * channels, self.std * channels)
        if channels == len(self.mean) or channels != 1:
            return self
        return Normalization((fmean(self.mean),), (fmean(self.std),))
