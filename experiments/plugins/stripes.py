"""A data set of your own: torch data sets of grey images with stripes, in four directions."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Stripes(Dataset[tuple[Tensor, int]]):
    """Images of 16x16 with noise; a class is a direction of the stripes.

    Args:
        images: number of them.
        seed: of the noise and the place of the stripes.
    """

    classes = ("rising", "falling", "upright", "level")

    def __init__(self, images: int, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        label = number % len(self.classes)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        along = (rows + columns, rows - columns, columns, rows)[label]
        phase = torch.randint(0, 8, (), generator=generator)
        stripes = ((along + phase) % 8 < 4) * 100.0
        noise = 155 * torch.rand(16, 16, generator=generator)
        return (stripes + noise).to(torch.uint8)[None], label


def stripes(root: Path | None) -> tuple[Stripes, Stripes]:
    """The data for training and for the test; nothing is read from a root."""
    return Stripes(800, seed=1), Stripes(200, seed=2)


DATA_SETS = {"stripes": stripes}
