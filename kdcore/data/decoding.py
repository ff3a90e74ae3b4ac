"""Decodes, crops, resizes and mirrors images.

Pillow decodes: torchvision's decoders are deprecated since version 0.29, and its PNG decoder kills
the process on some damaged files. PyTorch resizes, with antialiasing.

Images are shown as a viewer shows them, but for colour profiles: upright, at 8 bits, and what is
transparent over a background.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kdcore.data.augmentation.draws import Draws
from kdcore.data.augmentation.pipeline import augmented, drawn_patches
from kdcore.data.augmentation.steps import RandomResizedCrop, Step
from kdcore.data.colour import WHITE, Colour
from kdcore.data.views import is_mirrored, patch_draws, patch_of
from kdcore.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# The factor to 8 bits from 2 or 4 bits of grey, by Pillow's name for these.
_LEVELS = {"L;2": 85, "L;4": 17}

# Evaluation crops 224 pixels out of 256, as is usual since Krizhevsky et al., NeurIPS 2012.
_MARGIN = (256, 224)


@dataclass(frozen=True)
class EncodedImage:
    """An image before decoding.

    Args:
        place: where it is stored, for messages.
        content: its bytes, or the file with them.
    """

    place: str
    content: bytes | Path


@dataclass(frozen=True)
class DecodingTask:
    """A self-contained decoding task: a part of a batch.

    Args:
        images: n of them.
        image_ids: their positions in the data set.
        size: height and width of the result.
        view_seed: of the augmentation.
        view: which view; None for unaugmented images.
        background: behind transparent images.
        steps: of the views, if they are not the usual ones; the first resizes a patch.
    """

    images: tuple[EncodedImage, ...]
    image_ids: tuple[int, ...]
    size: tuple[int, int]
    view_seed: int
    view: int | None
    background: Colour = WHITE
    steps: tuple[Step, ...] | None = None


def decode_task(task: DecodingTask) -> Tensor:
    """Decodes the images of a task: [n, 3, height, width], uint8.

    Raises:
        DataError: an image is damaged; the message says where it is stored.
    """
    pixels = torch.empty(len(task.images), 3, *task.size, dtype=torch.uint8)
    if task.view is None:
        for image, place in zip(task.images, pixels, strict=True):
            place.copy_(centre_crop(opened_image(image, task.background), task.size))
        return pixels
    if task.steps is not None:
        return _with_steps(task, task.steps, task.view, pixels)
    draws = patch_draws(task.view_seed, task.view, torch.tensor(task.image_ids)).tolist()
    for image, place, row in zip(task.images, pixels, draws, strict=True):
        opened = opened_image(image, task.background)
        top, left, height, width = patch_of(row, opened.height, opened.width)
        patch = _resized(opened.crop((left, top, left + width, top + height)), *task.size)
        place.copy_(patch.flip(2) if is_mirrored(row) else patch)
    return pixels


def _with_steps(task: DecodingTask, steps: tuple[Step, ...], view: int, pixels: Tensor) -> Tensor:
    crop, image_ids = steps[0], torch.tensor(task.image_ids)
    assert isinstance(crop, RandomResizedCrop)  # DataConfig decodes others once
    opened = [opened_image(image, task.background) for image in task.images]
    sizes = [(image.height, image.width) for image in opened]
    patches = drawn_patches(crop, sizes, Draws(task.view_seed, view, image_ids, 0))
    for image, place, (top, left, height, width) in zip(opened, pixels, patches, strict=True):
        patch = image.crop((left, top, left + width, top + height))
        place.copy_(_resized(patch, *task.size))
    return augmented(pixels, image_ids, steps, seed=task.view_seed, view=view, begin=1)


def centre_crop(image: "Image", size: tuple[int, int]) -> Tensor:
    """Resizes an image so that it covers 256/224 of a size, and crops the centre.

    Args:
        image: RGB.
        size: height and width of the crop.

    Returns:
        [3, height, width], uint8.
    """
    least_height, least_width = (round(side * _MARGIN[0] / _MARGIN[1]) for side in size)
    if image.height * least_width <= image.width * least_height:
        resized = _resized(image, least_height, image.width * least_height // image.height)
    else:
        resized = _resized(image, image.height * least_width // image.width, least_width)
    top, left = round((resized.shape[1] - size[0]) / 2), round((resized.shape[2] - size[1]) / 2)
    return resized[:, top : top + size[0], left : left + size[1]]


def _resized(image: "Image", height: int, width: int) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0]


def opened_image(image: EncodedImage, background: Colour = WHITE) -> "Image":
    """Decodes an image, upright and RGB.

    Args:
        image: JPEG, PNG, WebP or BMP.
        background: behind it, where it is transparent.

    Raises:
        DataError: it is damaged; the message says where it is stored.
    """
    try:
        return decode(_content_of(image), background)
    # Pillow's errors have no common base: OSError, ValueError, SyntaxError and others.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise DataError(
            f"damaged image {image.place}: {reason}; replace it, or remove it from the data set"
        ) from None


def is_transparent(image: EncodedImage) -> bool:
    """Whether the background shows through somewhere; False if the image is damaged.

    Pixels are decoded only where the header allows for transparency.
    """
    try:
        opened = _opened(_content_of(image))
        return opened.has_transparency_data and _over(opened, WHITE)[1]
    except Exception:  # as above; whoever trains on the image is told its name
        return False


def decode(content: bytes, background: Colour = WHITE) -> "Image":
    """Decodes to an upright RGB image. Grey becomes RGB, and 16 bits lose the lower 8.

    Args:
        content: JPEG, PNG, WebP or BMP.
        background: behind it, where it is transparent.
    """
    from PIL import ImageOps

    image = _opened(content)
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        return _over(image, background)[0]
    return _at_8_bits(image).convert("RGB")


def _content_of(image: EncodedImage) -> bytes:
    return image.content.read_bytes() if isinstance(image.content, Path) else image.content


def _opened(content: bytes) -> "Image":
    """An image whose pixels are not decoded yet."""
    from PIL import Image, UnidentifiedImageError  # not needed for image tables

    if not content:
        raise DataError("it is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"it is none of {', '.join(_FORMATS)}") from None
    # Pillow converts the pixels of a PNG to 8 bits, but not the level or colour that a PNG without
    # alpha may declare transparent.
    key, raw_mode = image.info.get("transparency"), image.tile and image.tile[0].args
    if key is not None and raw_mode in _LEVELS:
        image.info["transparency"] = key * _LEVELS[raw_mode]
    elif key is not None and raw_mode == "I;16B":
        image.info["transparency"] = key >> 8
    elif key is not None and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _over(image: "Image", background: Colour) -> tuple["Image", bool]:
    """A transparent image over a background, and whether that shows through."""
    from PIL import Image

    layer = _at_8_bits(image).convert("RGBA")
    shown = Image.new("RGB", image.size, background)
    shown.paste(layer, mask=layer)  # rounds to the nearest, unlike Image.alpha_composite
    return shown, layer.getchannel("A").getextrema() != (255, 255)


def _at_8_bits(image: "Image") -> "Image":
    """16 bits of grey, which convert() would clip at 255, lose the lower 8; others stay."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    levels = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    levels.info = image.info
    return levels
