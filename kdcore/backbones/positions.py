"""Position embeddings of transformers, for images of another size than that of their weights."""

from collections.abc import Mapping
from math import isqrt
from typing import NamedTuple

from torch import Tensor, cat
from torch.nn.functional import interpolate


class Positions(NamedTuple):
    """What a position embedding [1, T, C] is of.

    Args:
        before: tokens before those of the patches, like that of the class.
        grid: height and width in patches, of the images that the network is built for.
    """

    before: int
    grid: tuple[int, int]


def given_grid(given: Tensor, expected: Tensor, positions: Positions) -> tuple[int, int] | None:
    """The square grid of an embedding [1, T, C] that has another T than is expected; None where it
    differs otherwise, or is of no square."""
    if given.ndim != 3 or given.shape[::2] != expected.shape[::2] or given.shape == expected.shape:
        return None
    patches = given.shape[1] - positions.before
    side = isqrt(max(patches, 0))
    return (side, side) if side and side * side == patches else None


def resample_positions(given: Tensor, grid: tuple[int, int], positions: Positions) -> Tensor:
    """A position embedding for another grid, as timm's `resample_abs_pos_embed`: bicubic with
    antialiasing, and as it is for tokens that are no patches.

    Args:
        given: [1, T, C].
        grid: height and width in patches of what is given.
        positions: of the result.
    """
    before, of_patches = given[:, : positions.before], given[:, positions.before :]
    maps = of_patches.float().transpose(1, 2).reshape(1, -1, *grid)
    resized = interpolate(maps, positions.grid, mode="bicubic", antialias=True)
    return cat((before, resized.flatten(2).transpose(1, 2).to(given.dtype)), 1)


def resampled_grids(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], positions: Mapping[str, Positions]
) -> dict[str, tuple[int, int]]:
    """By name, the grids of the position embeddings that are for images of another size."""
    both = {name: where for name, where in positions.items() if name in given and name in expected}
    grids = {name: given_grid(given[name], expected[name], where) for name, where in both.items()}
    return {name: grid for name, grid in grids.items() if grid is not None}
