"""Deterministic augmentation: view v of image i depends on (seed, i, v) alone.

So teacher and student see the same pixels (consistent teaching: Beyer et al., CVPR 2022,
arXiv:2106.05237), a teacher's outputs can be cached per view, and batch size, order, device and
restarts do not change the images.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

_WORD = 1 << 64


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


# SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Logical right shift: masks the sign bits that int64 shifts in."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's mixing of 64-bit words; int64 products wrap around, as intended."""
    bits = bits + _GAMMA
    bits = (bits ^ _shifted(bits, 30)) * _MULTIPLIERS[0]
    bits = (bits ^ _shifted(bits, 27)) * _MULTIPLIERS[1]
    return bits ^ _shifted(bits, 31)


RESOLUTION = 1 << 31
"""Of uniform numbers: the most that `draw` gives."""


def draw(seed: int, view: int, image_ids: Tensor, number: int, below: int) -> Tensor:
    """Independent uniform integers, one per image.

    Args:
        seed: of the data set's views, int64.
        view: >= 0.
        image_ids: [B], int64.
        number: of the draw, >= 0; draws of an image with different numbers are independent.
        below: exclusive upper bound, at most 2^31, so that the bias is negligible.

    Returns:
        [B], int64, on the device of `image_ids`.
    """
    key = torch.tensor(seed, dtype=torch.int64)
    for word in (view, number):
        key = _mix(key ^ word)
    bits = _shifted(_mix(_mix(image_ids ^ key.item())), 33)
    return bits if below == RESOLUTION else bits % below


def padded_crop(images: Tensor, padding: int, row: Tensor, column: Tensor) -> Tensor:
    """Crops [B, C, H, W] to its own size after black padding, at rows [B] and columns [B]."""
    height, width = images.shape[2:]
    # A strided view of all crops of all images, from which each image takes one.
    crops = pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(len(images), device=images.device), :, row, column]


def mirrored(images: Tensor, which: Tensor) -> Tensor:
    """Mirrors some images of [B, C, H, W]: [B], bool."""
    return torch.where(which.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def crop_and_flip(
    images: Tensor, image_ids: Tensor, *, seed: int, view: int, crop_padding: int, flip: bool
) -> Tensor:
    """Pads, crops and mirrors each image at random.

    Args:
        images: [B, C, H, W], of any type.
        image_ids: [B], int64, positions in the data set.
        seed: of the data set's views.
        view: >= 0.
        crop_padding: pixels of black border, >= 0; 0 for no crops.
        flip: whether to mirror with probability 1/2.

    Returns:
        [B, C, H, W], the usual augmentation of CIFAR; the same on every device.
    """
    if crop_padding:
        row, column = (draw(seed, view, image_ids, n, 2 * crop_padding + 1) for n in (1, 2))
        images = padded_crop(images, crop_padding, row, column)
    if flip:
        images = mirrored(images, draw(seed, view, image_ids, 0, 2).bool())
    return images


# Szegedy et al., "Going deeper with convolutions", 2014, arXiv:1409.4842, section 6: patches of
# 8% to 100% of the image's area, evenly distributed, with an aspect ratio between 3/4 and 4/3. If
# ten patches in a row do not fit into the image, its centre is taken.
_AREAS = (0.08, 1.0)
_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10

DRAWS_OF_A_PATCH = 3 + 2 * _ATTEMPTS


def patch_draws(seed: int, view: int, image_ids: Tensor) -> Tensor:
    """The random numbers of a view of images of any size.

    Args:
        seed: of the data set's views.
        view: >= 0.
        image_ids: [B], int64.

    Returns:
        [B, 3 + 2 * 10], float64 in [0, 1): whether to mirror, the patch's vertical and horizontal
        position, and area and aspect ratio of each attempt.
    """
    numbers = range(DRAWS_OF_A_PATCH)
    drawn = [draw(seed, view, image_ids, number, RESOLUTION) for number in numbers]
    return torch.stack(drawn, 1).double() / RESOLUTION


def is_mirrored(draws: Sequence[float]) -> bool:
    """Whether to mirror the image with these draws."""
    return draws[0] < 0.5


def patch_of(
    draws: Sequence[float],
    height: int,
    width: int,
    areas: tuple[float, float] = _AREAS,
    ratios: tuple[float, float] = _RATIOS,
) -> tuple[int, int, int, int]:
    """The patch of an image in a view.

    Args:
        draws: the image's row of `patch_draws`.
        height: of the image, in pixels.
        width: likewise.
        areas: smallest and largest share of the image's area.
        ratios: smallest and largest ratio of width to height.

    Returns:
        Top and left edge, height and width of the patch.
    """
    vertical, horizontal = draws[1:3]
    low, high = map(math.log, ratios)
    for area, ratio in zip(draws[3::2], draws[4::2], strict=True):
        pixels = height * width * (areas[0] + area * (areas[1] - areas[0]))
        aspect = math.exp(low + ratio * (high - low))
        patch_height, patch_width = round((pixels / aspect) ** 0.5), round((pixels * aspect) ** 0.5)
        if 0 < patch_height <= height and 0 < patch_width <= width:
            break
    else:
        patch_height = min(height, round(width / ratios[0]))
        patch_width = min(width, round(height * ratios[1]))
        vertical = horizontal = 0.5
    top = int(vertical * (height - patch_height + 1))
    left = int(horizontal * (width - patch_width + 1))
    return top, left, patch_height, patch_width
