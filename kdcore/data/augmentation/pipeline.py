"""Applies the steps of an augmentation to a batch."""

import math
from collections.abc import Callable, Mapping
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from kdcore.data.augmentation import colour
from kdcore.data.augmentation.draws import Draws
from kdcore.data.augmentation.geometry import (
    DRAWS_OF_A_BOX,
    box_of,
    inside,
    resized_patches,
)
from kdcore.data.augmentation.groups import by_groups
from kdcore.data.augmentation.policies import rand_augment, trivial_augment
from kdcore.data.augmentation.steps import (
    Blur,
    ColorJitter,
    Flip,
    Gray,
    PadCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Step,
    TrivialAugment,
)
from kdcore.data.views import DRAWS_OF_A_PATCH, mirrored, padded_crop, patch_of


def augmented(
    images: Tensor,
    image_ids: Tensor,
    steps: tuple[Step, ...],
    *,
    seed: int,
    view: int,
    begin: int = 0,
) -> Tensor:
    """Views of a batch, before they are mixed.

    Args:
        images: [B, C, H, W], uint8.
        image_ids: [B], int64, positions in the data set.
        steps: all of them; those that mix are left out.
        seed: of the data set's views.
        view: >= 0.
        begin: the place of the first step to apply.

    Returns:
        [B, C, H, W], uint8: for an image the same in every batch.
    """
    ids = image_ids.cpu()
    for place, step in enumerate(steps):
        if place >= begin and not step.mixes:
            images = _OPERATIONS[type(step)](step, images, Draws(seed, view, ids, place))
    return images


def drawn_patches(
    step: RandomResizedCrop, sizes: list[tuple[int, int]], draws: Draws
) -> list[tuple[int, int, int, int]]:
    """The patch of each image, which may have any size: top, left, height and width."""
    rows = draws.several(DRAWS_OF_A_PATCH)
    return [
        patch_of(row, height, width, step.scale, step.ratio)
        for row, (height, width) in zip(rows, sizes, strict=True)
    ]


def _random_resized_crop(step: RandomResizedCrop, images: Tensor, draws: Draws) -> Tensor:
    height, width = images.shape[2:]
    return resized_patches(images, drawn_patches(step, [(height, width)] * len(images), draws))


def _pad_crop(step: PadCrop, images: Tensor, draws: Draws) -> Tensor:
    if not step.padding:
        return images
    row, column = (draws.below(number, 2 * step.padding + 1).to(images.device) for number in (0, 1))
    return padded_crop(images, step.padding, row, column)


def _flip(step: Flip, images: Tensor, draws: Draws) -> Tensor:
    return mirrored(images, draws.happens(0, step.p))


_ADJUSTMENTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": colour.brightness,
    "contrast": colour.contrast,
    "saturation": colour.saturation,
    "hue": colour.hue,
}


def _color_jitter(step: ColorJitter, images: Tensor, draws: Draws) -> Tensor:
    ranges = step.ranges()
    names = tuple(ranges)
    orders = list(permutations(range(len(names))))
    order = draws.below(0, len(orders))
    factors = {
        name: draws.between(1 + number, *limits)
        for number, (name, limits) in enumerate(ranges.items())
        if limits is not None
    }

    def adjust(number: int, some: Tensor, rows: Tensor) -> Tensor:
        for name in (names[place] for place in orders[number]):
            if name in factors:
                factor = colour.factors(factors[name][rows], some.device)
                some = _ADJUSTMENTS[name](some, factor)
        return some

    return by_groups(images, order, adjust)


def _random_erasing(step: RandomErasing, images: Tensor, draws: Draws) -> Tensor:
    height, width = images.shape[2:]
    rows = draws.happens(DRAWS_OF_A_BOX, step.p).nonzero().flatten()
    if not len(rows):
        return images
    found = [
        box_of(row, height, width, step.scale, step.ratio)
        for row in draws.of(rows).several(DRAWS_OF_A_BOX)
    ]
    # An empty box where none fits.
    edges = [(t, le, t + h, le + w) for t, le, h, w in (box or (0, 0, 0, 0) for box in found)]
    boxes = torch.zeros(len(images), 4, dtype=torch.int64)
    boxes[rows] = torch.tensor(edges)
    erased = inside(boxes.to(images.device), height, width)
    return images.masked_fill(erased, step.value)


def _gray(step: Gray, images: Tensor, draws: Draws) -> Tensor:
    is_gray = draws.happens(0, step.p)
    return by_groups(images, is_gray, lambda gray, some, _: colour.gray(some) if gray else some)


def _blur(step: Blur, images: Tensor, draws: Draws) -> Tensor:
    # As in torchvision, the kernel is sampled at places that are scaled by half the square root
    # of 2.
    limit = (step.kernel_size - 1) / (2 * math.sqrt(2))
    places = [
        -limit + 2 * limit * number / max(1, step.kernel_size - 1)
        for number in range(step.kernel_size)
    ]
    kernels = []
    for sigma in draws.between(0, *step.range()).tolist():
        heights = [math.exp(-((place / sigma) ** 2)) for place in places]
        total = math.fsum(heights)
        kernels.append([each / total for each in heights])
    return colour.blur(images, torch.tensor(kernels, dtype=torch.float64))


_OPERATIONS: Mapping[type[Step], Callable[[Any, Tensor, Draws], Tensor]] = {
    RandomResizedCrop: _random_resized_crop,
    PadCrop: _pad_crop,
    Flip: _flip,
    ColorJitter: _color_jitter,
    RandAugment: rand_augment,
    TrivialAugment: trivial_augment,
    RandomErasing: _random_erasing,
    Gray: _gray,
    Blur: _blur,
}
