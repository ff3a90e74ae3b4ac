"""Operations that move pixels: [n, C, H, W], uint8."""

import math
from collections.abc import Sequence

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


def mirrored(images: Tensor, which: Tensor) -> Tensor:
    """Mirrors some images: [n], bool."""
    return torch.where(which.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


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


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Moves pixels to nearest neighbours, with black outside.

    Args:
        images: of one size.
        matrices: [n, 2, 3], float64: where a pixel comes from, in pixels from the centre.
    """
    height, width = images.shape[2:]
    options = {"dtype": torch.float64, "device": images.device}
    x = torch.arange(width, **options) - (width - 1) / 2  # type: ignore[call-overload]
    y = (torch.arange(height, **options) - (height - 1) / 2)[:, None]  # type: ignore[call-overload]

    def source(row: Tensor, side: int) -> Tensor:
        along, down, shift = (part.view(-1, 1, 1) for part in row.unbind(1))
        exact: Tensor = along * x + down * y + (shift + (side - 1) / 2)
        return exact.round_()

    matrices = matrices.to(images.device)
    column, row = source(matrices[:, 0], width), source(matrices[:, 1], height)
    there = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = torch.where(there, row * width + column, 0).long().flatten(1)[:, None]
    moved = images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view_as(images)
    return torch.where(there[:, None], moved, 0)
