"""RandAugment (arXiv:1909.13719) and TrivialAugment (arXiv:2103.10158), as torchvision has them."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kdcore.data.augmentation import colour
from kdcore.data.augmentation.draws import Draws
from kdcore.data.augmentation.geometry import affine
from kdcore.data.augmentation.steps import RandAugment, TrivialAugment

# An operation takes images and a magnitude for each, [n], float64.
_Operation = Callable[[Tensor, Tensor], Tensor]


def _matrices(magnitudes: Tensor) -> Tensor:
    """[n, 2, 3], float64, which leave every pixel where it is."""
    return torch.eye(2, 3, dtype=torch.float64).repeat(len(magnitudes), 1, 1)


def _shear_x(images: Tensor, magnitudes: Tensor) -> Tensor:
    matrices = _matrices(magnitudes)
    matrices[:, 0, 1] = magnitudes
    matrices[:, 0, 2] = magnitudes * (images.shape[2] / 2)  # about the upper left corner
    return affine(images, matrices)


def _shear_y(images: Tensor, magnitudes: Tensor) -> Tensor:
    matrices = _matrices(magnitudes)
    matrices[:, 1, 0] = magnitudes
    matrices[:, 1, 2] = magnitudes * (images.shape[3] / 2)
    return affine(images, matrices)


def _translate(row: int) -> _Operation:
    def translate(images: Tensor, magnitudes: Tensor) -> Tensor:
        matrices = _matrices(magnitudes)
        matrices[:, row, 2] = -magnitudes.trunc()
        return affine(images, matrices)

    return translate


def _rotate(images: Tensor, magnitudes: Tensor) -> Tensor:
    angles = [math.radians(degrees) for degrees in magnitudes.tolist()]
    rows = [[[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]] for a in angles]
    return affine(images, torch.tensor(rows, dtype=torch.float64))


def _blended(blend: Callable[[Tensor, Tensor], Tensor]) -> _Operation:
    return lambda images, magnitudes: blend(images, colour.factors(1 + magnitudes, images.device))


def _posterize(images: Tensor, magnitudes: Tensor) -> Tensor:
    return colour.posterize(images, (8 - magnitudes).round().long())


def _solarize(images: Tensor, magnitudes: Tensor) -> Tensor:
    # A threshold that is whole but for its rounding stays so.
    return colour.solarize(images, (255 * (1 - magnitudes) - 1e-9).ceil().long())


OPERATIONS: Mapping[str, _Operation] = {
    "identity": lambda images, magnitudes: images,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate(0),
    "translate_y": _translate(1),
    "rotate": _rotate,
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


def operate(name: str, images: Tensor, magnitudes: Tensor) -> Tensor:
    """An operation with a magnitude for each image, [n], float64."""
    return OPERATIONS[name](images, magnitudes)


def _one_each(
    images: Tensor, operation: Tensor, shares: Tensor, signs: Tensor, *, wide: bool
) -> Tensor:
    """Each image by its own operation, with its share of the largest magnitude, [B]."""
    changed = torch.empty_like(images)
    largest = highest(images, wide=wide)
    for number, name in enumerate(OPERATIONS):
        rows = (operation == number).nonzero().flatten()
        if not len(rows):
            continue
        magnitudes = shares[rows] * largest.get(name, 0.0)
        if name not in UNSIGNED:
            magnitudes = magnitudes * signs[rows]
        there = rows.to(images.device)
        changed[there] = operate(name, images[there], magnitudes)
    return changed


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
