"""The random numbers of a step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcore.data.views import RESOLUTION, draw

# The numbers below belong to the views that had no steps yet.
_NUMBERS_OF_A_STEP = 1024


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step for a batch, on the processor.

    Args:
        seed: of the data set's views.
        view: >= 0.
        image_ids: [B], int64, on the processor.
        place: of the step in its list.
    """

    seed: int
    view: int
    image_ids: Tensor
    place: int

    def below(self, number: int, bound: int) -> Tensor:
        """Uniform integers [B], int64, below a bound; independent for each `number` < 1024."""
        number += _NUMBERS_OF_A_STEP * (self.place + 1)
        return draw(self.seed, self.view, self.image_ids, number, bound)

    def uniform(self, number: int) -> Tensor:
        """[B], float64 in [0, 1)."""
        return self.below(number, RESOLUTION).double() / RESOLUTION

    def between(self, number: int, low: float, high: float) -> Tensor:
        """[B], float64 in [low, high)."""
        return low + self.uniform(number) * (high - low)

    def happens(self, number: int, share: float) -> Tensor:
        """[B], bool, true with this probability."""
        return self.uniform(number) < share

    def of(self, rows: Tensor) -> "Draws":
        """The draws of some of the images."""
        return Draws(self.seed, self.view, self.image_ids[rows], self.place)

    def several(self, numbers: int) -> list[list[float]]:
        """The first so many uniform numbers of each image."""
        return torch.stack([self.uniform(number) for number in range(numbers)], 1).tolist()
