"""Encoded images become pixels: formats, orientation, crops, and files that are damaged."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional

from kdcore.data.decoding import DecodingTask, EncodedImage, centre_crop, decode, decode_task
from kdcore.data.views import is_mirrored, patch_draws, patch_of
from tests.unit.kdcore.photographs import encoded, photograph

PHOTOGRAPH = photograph(0)


def decoded(content: bytes) -> Tensor:
    image = decode(content)
    assert image.mode == "RGB"
    return pixels_of(image)


def pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _grey_16() -> bytes:
    levels = np.arange(2000, dtype=np.uint16).reshape(40, 50) * 32
    return encoded(Image.fromarray(levels), "PNG")


def _transparent_palette() -> bytes:
    degrees = bytes(range(64))
    return encoded(PHOTOGRAPH.quantize(64), "PNG", transparency=degrees)


FORMATS: dict[str, tuple[bytes, Tensor]] = {
    "png": (encoded(PHOTOGRAPH, "PNG"), pixels_of(PHOTOGRAPH)),
    "webp": (encoded(PHOTOGRAPH, "WEBP", lossless=True), pixels_of(PHOTOGRAPH)),
    "bmp": (encoded(PHOTOGRAPH, "BMP"), pixels_of(PHOTOGRAPH)),
    "grey": (encoded(PHOTOGRAPH.convert("L"), "PNG"), pixels_of(PHOTOGRAPH.convert("L"))),
    "grey, alpha": (encoded(PHOTOGRAPH.convert("LA"), "PNG"), pixels_of(PHOTOGRAPH.convert("L"))),
    "alpha": (encoded(PHOTOGRAPH.convert("RGBA"), "PNG"), pixels_of(PHOTOGRAPH)),
    "webp, alpha": (
        encoded(PHOTOGRAPH.convert("RGBA"), "WEBP", lossless=True),
        pixels_of(PHOTOGRAPH),
    ),
    "palette": (encoded(PHOTOGRAPH.quantize(64), "PNG"), pixels_of(PHOTOGRAPH.quantize(64))),
    "transparent palette": (_transparent_palette(), pixels_of(PHOTOGRAPH.quantize(64))),
    "black and white": (
        encoded(PHOTOGRAPH.convert("1"), "PNG"),
        pixels_of(PHOTOGRAPH.convert("1")),
    ),
    "16 bits": (
        _grey_16(),
        (torch.arange(2000).reshape(1, 40, 50) * 32 // 256).byte().expand(3, -1, -1),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_lossless_images_come_back_as_rgb(name: str) -> None:
    content, expected = FORMATS[name]
    assert torch.equal(decoded(content), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_mode_come_back_as_rgb(mode: str) -> None:
    shown = decoded(encoded(PHOTOGRAPH.convert(mode), quality=95))
    expected = pixels_of(PHOTOGRAPH.convert("L") if mode == "L" else PHOTOGRAPH)
    assert shown.shape == expected.shape
    assert (shown.float() - expected.float()).abs().mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_come_back_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(PHOTOGRAPH, kind, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = pixels_of(ImageOps.exif_transpose(image))
    assert torch.equal(decoded(content), expected)


# Crops


def alike(shown: Tensor, expected: Tensor) -> bool:
    """Equal, but for the last bit where PyTorch resizes bytes in another way on this processor."""
    return shown.shape == expected.shape and int((shown.int() - expected.int()).abs().max()) <= 1


def torchvisions_crop(pixels: Tensor, side: int) -> Tensor:
    resized = functional.resize(pixels, [round(side * 256 / 224)], antialias=True)
    return functional.center_crop(resized, [side, side])


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("size", [(375, 500), (500, 333), (64, 64), (41, 300), (20, 17)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(
    size: tuple[int, int], side: int
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    assert alike(centre_crop(image, (side, side)), torchvisions_crop(pixels_of(image), side))


def test_a_crop_need_not_be_square() -> None:
    columns = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1))).convert("RGB")
    crop = centre_crop(columns, (28, 84))
    assert crop.shape == (3, 28, 84)
    # 100x200 becomes 48x96, of which the columns 6 to 89 are shown.
    expected = (torch.arange(84) + 6.5) * 200 / 96
    assert (crop[0, 0] - expected).abs().max() <= 1
    turned = columns.transpose(Image.Transpose.TRANSPOSE)
    assert torch.equal(centre_crop(turned, (84, 28)), crop.transpose(1, 2))


def task(*images: bytes | Path, view: int | None = 0, ids: tuple[int, ...] = ()) -> DecodingTask:
    named = tuple(EncodedImage(f"image {i}", image) for i, image in enumerate(images))
    return DecodingTask(named, ids or tuple(range(len(images))), (32, 48), 0, view)


def test_a_view_is_torchvisions_resized_crop_of_its_patch() -> None:
    contents = [encoded(photograph(seed), "PNG") for seed in range(20)]
    shown = decode_task(task(*contents, view=3))
    assert shown.shape == (20, 3, 32, 48)
    mirrored = 0
    draws = patch_draws(0, 3, torch.arange(20)).tolist()
    for image, content, row in zip(shown, contents, draws, strict=True):
        pixels = decoded(content)
        patch = patch_of(row, *pixels.shape[1:])
        expected = functional.resized_crop(pixels, *patch, [32, 48], antialias=True)
        expected = expected.flip(2) if is_mirrored(row) else expected
        assert alike(image, expected)
        mirrored += is_mirrored(row)
    assert 0 < mirrored < 20


def test_a_file_is_shown_as_its_content_is(tmp_path: Path) -> None:
    content = encoded(PHOTOGRAPH)
    (tmp_path / "a").write_bytes(content)
    for view in (0, None):
        assert torch.equal(
            decode_task(task(tmp_path / "a", view=view)), decode_task(task(content, view=view))
        )


# Damage


def _flipped(content: bytes) -> bytes:
    """One damaged byte in the middle; a PNG with it has ended processes."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "garbage": lambda content: b"no image " * 50,
    "first half": lambda content: content[: len(content) // 2],
    "first bytes": lambda content: content[:20],
    "gif": lambda content: encoded(PHOTOGRAPH, "GIF"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("view", [0, None])
def test_a_damaged_image_is_named(kind: str, damage: str, view: int | None) -> None:
    good = encoded(PHOTOGRAPH, kind)
    with pytest.raises(ValueError, match=r"damaged image image 1: .*; replace it, or remove it"):
        decode_task(task(good, DAMAGES[damage](good), view=view))


def test_a_damaged_byte_of_a_png_is_named() -> None:
    with pytest.raises(ValueError, match="damaged image image 0"):
        decode_task(task(_flipped(encoded(PHOTOGRAPH, "PNG"))))


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"damaged image image 0: .*No such file"):
        decode_task(task(tmp_path / "gone"))
