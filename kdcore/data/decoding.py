"""Decodes, crops, resizes and mirrors images.

Pillow decodes: torchvision's decoders are deprecated since version 0.29, and its PNG decoder kills
the process on some damaged files. PyTorch resizes, with antialiasing.

Images are shown as a viewer shows them, but for colour profiles: upright, at 8 bits, and what is
transparent over a background.
"""

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kdcore.data.augmentation.draws import Draws
from kdcore.data.augmentation.pipeline import augmented
from kdcore.data.augmentation.steps import RandomResizedCrop, Step
from kdcore.data.centre_crop import USUAL_CROP, CentreCrop
from kdcore.data.colour import WHITE, Colour
from kdcore.data.kept_pixels import KeptPixels
from kdcore.data.views import DRAWS_OF_A_PATCH, is_mirrored, patch_draws, patch_of
from kdcore.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = Image | np.ndarray  # RGB; [H, W, 3], uint8

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# The factor to 8 bits from 2 or 4 bits of grey, by Pillow's name for these.
_LEVELS = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class EncodedImage:
    """An image before decoding.

    Args:
        place: where it is stored, for messages.
        content: its bytes, the file with them, or its pixels, if these are kept.
    """

    place: str
    content: bytes | Path | KeptPixels


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
        crop: of unaugmented images.
    """

    images: tuple[EncodedImage, ...]
    image_ids: tuple[int, ...]
    size: tuple[int, int]
    view_seed: int
    view: int | None
    background: Colour = WHITE
    steps: tuple[Step, ...] | None = None
    crop: CentreCrop = USUAL_CROP


@dataclass
class Work:
    """Seconds that were spent on images.

    Args:
        decoding: reading and decoding them.
        augmenting: everything else.
    """

    decoding: float = 0.0
    augmenting: float = 0.0

    def add(self, other: "Work") -> None:
        self.decoding += other.decoding
        self.augmenting += other.augmenting

    def opened(self, image: EncodedImage, background: Colour) -> "Picture":
        """An image, decoded on this account unless it is kept decoded; see `opened_image`."""
        started = time.perf_counter()
        kept = image.content
        opened = kept.read() if isinstance(kept, KeptPixels) else opened_image(image, background)
        self.decoding += time.perf_counter() - started
        return opened


def timed_task(task: DecodingTask) -> tuple[Tensor, Work]:
    """As `decode_task`, with the work that it was."""
    work, started = Work(), time.perf_counter()
    pixels = decode_task(task, work)
    work.augmenting = time.perf_counter() - started - work.decoding
    return pixels, work


def decode_task(task: DecodingTask, work: Work | None = None) -> Tensor:
    """Decodes the images of a task: [n, 3, height, width], uint8.

    Args:
        task: which images, and what is shown of them.
        work: on whose account.

    Raises:
        DataError: an image is damaged; the message says where it is stored.
    """
    work = work or Work()
    pixels = torch.empty(len(task.images), 3, *task.size, dtype=torch.uint8)
    if task.view is None:
        for image, place in zip(task.images, pixels, strict=True):
            opened = work.opened(image, task.background)
            place.copy_(centre_crop(opened, task.size, task.crop))
        return pixels
    if task.steps is not None:
        return _with_steps(task, task.steps, task.view, pixels, work)
    draws = patch_draws(task.view_seed, task.view, torch.tensor(task.image_ids)).tolist()
    for image, place, row in zip(task.images, pixels, draws, strict=True):
        opened = work.opened(image, task.background)
        patch = _resized(cropped(opened, *patch_of(row, *sides_of(opened))), *task.size)
        place.copy_(patch.flip(2) if is_mirrored(row) else patch)
    return pixels


def _with_steps(
    task: DecodingTask, steps: tuple[Step, ...], view: int, pixels: Tensor, work: Work
) -> Tensor:
    crop, image_ids = steps[0], torch.tensor(task.image_ids)
    assert isinstance(crop, RandomResizedCrop)  # DataConfig decodes others once
    rows = Draws(task.view_seed, view, image_ids, 0).several(DRAWS_OF_A_PATCH)
    for image, place, row in zip(task.images, pixels, rows, strict=True):  # one in memory at a time
        opened = work.opened(image, task.background)
        patch = patch_of(row, *sides_of(opened), crop.scale, crop.ratio)
        place.copy_(_resized(cropped(opened, *patch), *task.size))
    return augmented(pixels, image_ids, steps, seed=task.view_seed, view=view, begin=1)


def sides_of(picture: "Picture") -> tuple[int, int]:
    """Height and width of a picture."""
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    return picture.height, picture.width


def cropped(picture: "Picture", top: int, left: int, height: int, width: int) -> "Picture":
    """A part of a picture."""
    if isinstance(picture, np.ndarray):
        return picture[top : top + height, left : left + width]
    return picture.crop((left, top, left + width, top + height))


def centre_crop(image: "Picture", size: tuple[int, int], crop: CentreCrop = USUAL_CROP) -> Tensor:
    """Resizes an image and crops the centre, rounding as torchvision's Resize and CenterCrop do.

    Args:
        image: RGB.
        size: height and width of the crop.
        crop: how far and how it is resized.

    Returns:
        [3, height, width], uint8.
    """
    least_height, least_width = map(crop.covered, size)
    height, width = sides_of(image)
    if height * least_width <= width * least_height:
        sides = least_height, width * least_height // height
    else:
        sides = height * least_width // width, least_width
    resized = _resized(image, *sides, crop.interpolation)
    top, left = round((resized.shape[1] - size[0]) / 2), round((resized.shape[2] - size[1]) / 2)
    return resized[:, top : top + size[0], left : left + size[1]]


def _resized(image: "Picture", height: int, width: int, interpolation: str = "bilinear") -> Tensor:
    # A copy has the same layout in memory, wherever the pixels come from, and so the same bits.
    pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)[None]
    return interpolate(pixels, (height, width), mode=interpolation, antialias=True)[0]


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
    assert not isinstance(image.content, KeptPixels)
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
