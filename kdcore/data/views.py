"""Deterministic augmentation: how image i looks in view v is a function of (seed, i, v) alone.

So teacher and student see the same pixels, a teacher's answer can be kept for each view, and
neither batch size, order, device nor a restart changes what is learned. Consistent teaching: Beyer
et al., CVPR 2022, arXiv:2106.05237.
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
    """Logical shift right; int64 shifts repeat the sign, so that is masked away."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """Scrambles every 64-bit word; int64 products wrap, which is the arithmetic meant here."""
    bits = bits + _GAMMA
    bits = (bits ^ _shifted(bits, 30)) * _MULTIPLIERS[0]
    bits = (bits ^ _shifted(bits, 27)) * _MULTIPLIERS[1]
    return bits ^ _shifted(bits, 31)


def draw(seed: int, view: int, image_ids: Tensor, number: int, below: int) -> Tensor:
    """Independent uniform integers, one for each image.

    Args:
        seed: of the data set's views, int64.
        view: >= 0.
        image_ids: [B], int64.
        number: which of an image's draws this is, >= 0.
        below: the integers are 0 to below-1; up to 2^31, so that no bias shows.

    Returns:
        [B], int64, on the device of `image_ids`.
    """
    key = torch.tensor(seed, dtype=torch.int64)
    for word in (view, number):
        key = _mix(key ^ word)
    return _shifted(_mix(_mix(image_ids ^ key.item())), 33) % below


def crop_and_flip(
    images: Tensor, image_ids: Tensor, *, seed: int, view: int, crop_padding: int, flip: bool
) -> Tensor:
    """Shifts each image by up to `crop_padding` pixels over black, and mirrors every second one.

    Args:
        images: [B, C, H, W], of any type.
        image_ids: [B], int64, the images' positions in their table.
        seed: of the data set's views.
        view: which view, >= 0.
        crop_padding: pixels, >= 0; 0 leaves every image in place.
        flip: whether to mirror.

    Returns:
        [B, C, H, W]: pad, crop and flip as the field trains CIFAR, with the same pixels on every
        device.
    """
    height, width = images.shape[2:]
    if crop_padding:
        # Every crop of every image: a view of the padded ones, from which each takes its own.
        crops = pad(images, (crop_padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        row, column = (draw(seed, view, image_ids, n, 2 * crop_padding + 1) for n in (1, 2))
        images = crops[torch.arange(len(images), device=images.device), :, row, column]
    if flip:
        mirrored = draw(seed, view, image_ids, 0, 2).bool()
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


# Szegedy et al., "Going deeper with convolutions", 2014, arXiv:1409.4842, section 6: patches whose
# size is distributed evenly between 8% and 100% of the image area, with an aspect ratio between
# 3/4 and 4/3. An image that ten patches in a row do not fit into shows its middle.
_AREAS = (0.08, 1.0)
_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_RESOLUTION = 1 << 31


def patch_draws(seed: int, view: int, image_ids: Tensor) -> Tensor:
    """What decides how images of any size look in a view.

    Args:
        seed: of the data set's views.
        view: which view, >= 0.
        image_ids: [B], int64.

    Returns:
        [B, 3 + 2 * 10], float64, 0 <= u < 1: whether to mirror, where the patch lies vertically and
        horizontally, and the area and aspect ratio of each attempt at it.
    """
    numbers = range(3 + 2 * _ATTEMPTS)
    drawn = [draw(seed, view, image_ids, number, _RESOLUTION) for number in numbers]
    return torch.stack(drawn, 1).double() / _RESOLUTION


def is_mirrored(draws: Sequence[float]) -> bool:
    """Whether the image of these draws is mirrored: every second one is."""
    return draws[0] < 0.5


def patch_of(draws: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """The patch of an image that a view shows.

    Args:
        draws: the image's row of `patch_draws`.
        height: of the image, in pixels.
        width: likewise.

    Returns:
        Top and left edge, height and width of the patch.
    """
    vertical, horizontal = draws[1:3]
    low, high = map(math.log, _RATIOS)
    for area, ratio in zip(draws[3::2], draws[4::2], strict=True):
        pixels = height * width * (_AREAS[0] + area * (_AREAS[1] - _AREAS[0]))
        aspect = math.exp(low + ratio * (high - low))
        patch_height, patch_width = round((pixels / aspect) ** 0.5), round((pixels * aspect) ** 0.5)
        if 0 < patch_height <= height and 0 < patch_width <= width:
            break
    else:
        patch_height = min(height, round(width / _RATIOS[0]))
        patch_width = min(width, round(height * _RATIOS[1]))
        vertical = horizontal = 0.5
    top = int(vertical * (height - patch_height + 1))
    left = int(horizontal * (width - patch_width + 1))
    return top, left, patch_height, patch_width
