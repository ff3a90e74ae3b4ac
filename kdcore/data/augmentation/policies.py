"""RandAugment (arXiv:1909.13719) and TrivialAugment (arXiv:2103.10158), as torchvision has them."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from kdcore.data.augmentation import colour
from kdcore.data.augmentation.draws import Draws
from kdcore.data.augmentation.geometry import affine
from kdcore.data.augmentation.groups import by_groups
from kdcore.data.augmentation.steps import RandAugment, TrivialAugment

# An operation takes images and a magnitude for each, [n], float64.
_Operation = Callable[[Tensor, Tensor], Tensor]


def _moved(matrix_of: Callable[[float, int, int], Sequence[float]]) -> _Operation:
    """Moves pixels by a matrix for each magnitude, height and width."""

    def by(magnitude: float, some: Tensor, rows: Tensor) -> Tensor:
        return affine(some, matrix_of(magnitude, some.shape[2], some.shape[3]))

    # Few are different, so the pixels' way is found once for each.
    return lambda images, magnitudes: by_groups(images, magnitudes, by)


def _rotation(degrees: float, height: int, width: int) -> Sequence[float]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cosine, -sine, 0.0, sine, cosine, 0.0


def _blended(blend: Callable[[Tensor, Tensor], Tensor]) -> _Operation:
    return lambda images, magnitudes: blend(images, colour.factors(1 + magnitudes, images.device))


def _posterize(images: Tensor, magnitudes: Tensor) -> Tensor:
    return colour.posterize(images, (8 - magnitudes).round().long())


def _solarize(images: Tensor, magnitudes: Tensor) -> Tensor:
    # A threshold that is whole but for its rounding stays so.
    return colour.solarize(images, (255 * (1 - magnitudes) - 1e-9).ceil().long())


OPERATIONS: Mapping[str, _Operation] = {
    "identity": lambda images, magnitudes: images,
    # About the upper left corner.
    "shear_x": _moved(lambda share, height, width: (1, share, share * (height / 2), 0, 1, 0)),
    "shear_y": _moved(lambda share, height, width: (1, 0, 0, share, 1, share * (width / 2))),
    "translate_x": _moved(lambda pixels, height, width: (1, 0, -math.trunc(pixels), 0, 1, 0)),
    "translate_y": _moved(lambda pixels, height, width: (1, 0, 0, 0, 1, -math.trunc(pixels))),
    "rotate": _moved(_rotation),
    "brightness": _blended(colour.brightness),
    "color": _blended(colour.saturation),
    "contrast": _blended(colour.contrast),
    "sharpness": _blended(colour.sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": lambda images, magnitudes: colour.autocontrast(images),
    "equalize": lambda images, magnitudes: colour.equalize(images),
}
"""By name, in torchvision's order."""

UNSIGNED = ("posterize", "solarize")


def highest(images: Tensor, *, wide: bool) -> Mapping[str, float]:
    """The largest magnitude of each operation that has one; TrivialAugment's are wide."""
    height, width = images.shape[2:]
    blends = dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99 if wide else 0.9)
    return blends | {
        "shear_x": 0.99 if wide else 0.3,
        "shear_y": 0.99 if wide else 0.3,
        "translate_x": 32.0 if wide else 150 / 331 * width,
        "translate_y": 32.0 if wide else 150 / 331 * height,
        "rotate": 135.0 if wide else 30.0,
        "posterize": 6.0 if wide else 4.0,
        "solarize": 1.0,
    }


def _one_each(
    images: Tensor, operation: Tensor, shares: Tensor, signs: Tensor, *, wide: bool
) -> Tensor:
    """Each image by its own operation, with its share of the largest magnitude, [B]."""
    largest, names = highest(images, wide=wide), tuple(OPERATIONS)

    def change(number: int, some: Tensor, rows: Tensor) -> Tensor:
        name = names[number]
        magnitudes = shares[rows] * largest.get(name, 0.0)
        if name not in UNSIGNED:
            magnitudes = magnitudes * signs[rows]
        return OPERATIONS[name](some, magnitudes)

    return by_groups(images, operation, change)


def rand_augment(step: RandAugment, images: Tensor, draws: Draws) -> Tensor:
    """Operations one after the other, with the same magnitude."""
    share = step.magnitude / (step.num_magnitude_bins - 1)
    shares = torch.full((len(images),), share, dtype=torch.float64)
    for number in range(step.num_ops):
        operation = draws.below(2 * number, len(OPERATIONS))
        signs = 1.0 - 2.0 * draws.below(2 * number + 1, 2)
        images = _one_each(images, operation, shares, signs, wide=False)
    return images


def trivial_augment(step: TrivialAugment, images: Tensor, draws: Draws) -> Tensor:
    """One operation, with any magnitude."""
    operation = draws.below(0, len(OPERATIONS))
    signs = 1.0 - 2.0 * draws.below(1, 2)
    level = draws.below(2, step.num_magnitude_bins)
    shares = level.double() / (step.num_magnitude_bins - 1)
    return _one_each(images, operation, shares, signs, wide=True)
