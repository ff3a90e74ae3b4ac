"""Encoded images of one small size, decoded once into an image table."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdcore.data.arrow_files import key_of
from kdcore.data.decoding import EncodedImage, opened_image
from kdcore.data.image_table import ImageTable, RawImages, open_table
from kdcore.data.streamed_split import StreamedCollection
from kdcore.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_SCHEMA_VERSION = 1

# Tiny-ImageNet has 1.35 GB of pixels, and each trial holds those that it trains on.
_MOST_BYTES = 4 * 2**30

_THREADS = 4
_AT_ONCE = 4096

_OTHERWISE = "set augmentation: resized_crop"


def decoded_once(images: StreamedCollection) -> ImageTable:
    """The same images as a table; views are crops after padding, mirrored half of the time.

    Raises:
        DataError: an image is damaged or has another size than the first, or all are too large.
    """
    key = key_of([_SCHEMA_VERSION, images.digest, int(images.is_test.sum())])
    path: Path = images.cache_path.with_name(f"{images.cache_path.name}-pixels-{key}.arrow")
    return open_table(
        path,
        lambda: RawImages(_pixels(images), images.labels, images.is_test),
        class_names=images.class_names,
        view_seed=images.view_seed,
        # As in the field: 4 pixels for CIFAR's 32, 12 for STL-10's 96.
        padding_of=lambda height, width: min(height, width) // 8,
        flip=True,
        steps=images.steps,
    )


def _pixels(images: StreamedCollection) -> Tensor:
    """All images in order: [N, 3, H, W], uint8."""
    count = len(images.labels)
    encoded = images.store.read(torch.arange(count))
    first = next(encoded)
    opened = opened_image(first, images.background)
    pixels = _room_for(count, opened)
    pixels[0] = _tensor_of(opened)

    def decode(image: EncodedImage, place: Tensor) -> None:
        opened = opened_image(image, images.background)
        if opened.size != (place.shape[2], place.shape[1]):
            raise DataError(
                f"image {image.place} is {opened.height}x{opened.width}, but {first.place} "
                f"{place.shape[1]}x{place.shape[2]}, and these views need images of "
                f"one size; {_OTHERWISE}"
            )
        place.copy_(_tensor_of(opened))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="decoding") as pool:
        for places in torch.split(pixels[1:], _AT_ONCE):
            list(pool.map(decode, islice(encoded, len(places)), places))
    return pixels


def _room_for(count: int, image: "Image") -> Tensor:
    size = count * 3 * image.height * image.width
    if size > _MOST_BYTES:
        raise DataError(
            f"{count} images of {image.height}x{image.width} are {size / 2**30:.1f} GiB of pixels, "
            f"but these views hold at most {_MOST_BYTES // 2**30} GiB in memory; "
            f"{_OTHERWISE}"
        )
    return torch.empty(count, 3, image.height, image.width, dtype=torch.uint8)


def _tensor_of(image: "Image") -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
