"""Operations that move pixels: [n, C, H, W], uint8."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_ATTEMPTS = 10


def box_of(
    draws: Sequence[float],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int] | None:
    """The box of torchvision's RandomErasing.

    Args:
        draws: [2 + 2 * 10] in [0, 1): its position, then area and ratio of each attempt.
        height: of the image.
        width: likewise.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest ratio of the box's height to its width.

    Returns:
        Top, left, height and width; None if no attempt fits.
    """
    low, high = map(math.log, ratio)
    for area, aspect in zip(draws[2::2], draws[3::2], strict=True):
        pixels = height * width * (scale[0] + area * (scale[1] - scale[0]))
        proportion = math.exp(low + aspect * (high - low))
        tall, wide = round(math.sqrt(pixels * proportion)), round(math.sqrt(pixels / proportion))
        if tall < height and wide < width:
            top, left = int(draws[0] * (height - tall + 1)), int(draws[1] * (width - wide + 1))
            return top, left, tall, wide
    return None


DRAWS_OF_A_BOX = 2 + 2 * _ATTEMPTS


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are in a box.

    Args:
        boxes: [n, 4], int64: top, left, bottom and right, the last two exclusive.
        height: of the image.
        width: likewise.

    Returns:
        [n, 1, H, W], bool.
    """
    top, left, bottom, right = boxes.view(-1, 4, 1).unbind(1)
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def resized_patches(images: Tensor, patches: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """Takes a patch (top, left, height, width) of each image, resized to the image's size.

    On the processor, because a GPU does not resize bytes.
    """
    size = images.shape[2], images.shape[3]
    there = images.cpu()
    resized = torch.empty_like(there, memory_format=torch.contiguous_format)
    for image, place, (top, left, height, width) in zip(there, resized, patches, strict=True):
        patch = image[None, :, top : top + height, left : left + width]
        place.copy_(interpolate(patch, size, mode="bilinear", antialias=True)[0])
    return resized.to(images.device)


def affine(images: Tensor, matrix: Sequence[float]) -> Tensor:
    """Moves pixels to nearest neighbours, with black outside.

    Args:
        images: of one size.
        matrix: [2 * 3], where a pixel comes from, in pixels from the centre.
    """
    index, there = _sources(tuple(matrix), images.shape[2], images.shape[3])
    flat = images.flatten(2)
    moved = flat.gather(2, index.to(images.device).expand_as(flat)).view_as(images)
    return moved.mul_(there.to(images.device))


# RandAugment has ten. Each is 0.45 MB for 224x224.
@lru_cache(maxsize=64)
def _sources(matrix: tuple[float, ...], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from, [H * W], int64, and whether it comes from the image, [H, W]."""
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2)[:, None]

    def source(side: int, along: float, down: float, shift: float) -> Tensor:
        return (along * x + down * y + (shift + (side - 1) / 2)).round_()

    column, row = source(width, *matrix[:3]), source(height, *matrix[3:])
    there = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = torch.where(there, row * width + column, 0)
    return index.long().flatten(), there.to(torch.uint8)
