"""Encoded images become pixels: formats, orientation, crops, and files that are damaged."""

import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional

from kdcore.data.colour import WHITE
from kdcore.data.decoding import (
    DecodingTask,
    EncodedImage,
    centre_crop,
    decode,
    decode_task,
    is_transparent,
)
from kdcore.data.views import is_mirrored, patch_draws, patch_of
from tests.unit.kdcore.photographs import encoded, photograph, png

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


# Colours, alpha and background of pixels in one row -> what a viewer shows.
BLACK_BEHIND, BLUE_BEHIND = (0, 0, 0), (0, 0, 255)


def over(colour: Sequence[int], alpha: int, background: Sequence[int]) -> list[int]:
    """A pixel over another, to the nearest."""
    return [
        int((level * alpha + behind * (255 - alpha)) / 255 + 0.5)
        for level, behind in zip(colour, background, strict=True)
    ]


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


LEVELS = (0, 1, 100, 128, 200, 254, 255)
COLOURS = [(255, 0, 0), (7, 77, 177), (0, 0, 0), (255, 255, 255), (0, 200, 0), (1, 2, 3), (9, 8, 7)]
PIXELS = list(zip(COLOURS, LEVELS, strict=True))
GREYS = list(zip([(v, v, v) for v in (0, 10, 90, 128, 200, 254, 255)], LEVELS, strict=True))
PALETTE = (b"PLTE", b"".join(map(bytes, COLOURS)))


def webp() -> bytes:
    image = Image.frombytes("RGBA", (7, 1), b"".join(bytes((*c, a)) for c, a in PIXELS))
    return encoded(image, "WEBP", lossless=True, exact=True)


# Name -> file, and colour and alpha of each of its pixels; the files hold exactly these.
TRANSPARENT: dict[str, tuple[bytes, list[tuple[tuple[int, int, int], int]]]] = {
    "rgb, alpha": (png(7, 8, 6, [b"".join(bytes((*c, a)) for c, a in PIXELS)]), PIXELS),
    "rgb, alpha, 16 bits": (
        png(7, 16, 6, [b"".join(words(*(257 * v for v in (*c, a))) for c, a in PIXELS)]),
        PIXELS,
    ),
    "grey, alpha": (png(7, 8, 4, [b"".join(bytes((c[0], a)) for c, a in GREYS)]), GREYS),
    "grey, alpha, 16 bits": (
        png(7, 16, 4, [b"".join(words(257 * c[0], 257 * a) for c, a in GREYS)]),
        GREYS,
    ),
    "webp": (webp(), PIXELS),
    "palette with alpha": (
        png(7, 8, 3, [bytes(range(7))], [PALETTE, (b"tRNS", bytes(LEVELS))]),
        PIXELS,
    ),
    "palette with alpha of some": (
        png(7, 4, 3, [b"\x01\x23\x45\x60"], [PALETTE, (b"tRNS", bytes(LEVELS[:3]))]),
        [(c, a if i < 3 else 255) for i, (c, a) in enumerate(PIXELS)],
    ),
    "palette with a transparent colour": (
        png(2, 1, 3, [b"\x40"], [PALETTE, (b"tRNS", b"\0")]),
        [(COLOURS[0], 0), (COLOURS[1], 255)],
    ),
    "rgb with a transparent colour": (
        png(2, 8, 2, [bytes((1, 2, 3, 1, 2, 4))], [(b"tRNS", words(1, 2, 3))]),
        [((1, 2, 3), 0), ((1, 2, 4), 255)],
    ),
    "rgb, 16 bits, with a transparent colour": (
        png(2, 16, 2, [words(256, 512, 768, 1, 2, 3)], [(b"tRNS", words(256, 512, 768))]),
        [((1, 2, 3), 0), ((0, 0, 0), 255)],
    ),
    "black and white with a transparent level": (
        png(8, 1, 0, [b"\xa0"], [(b"tRNS", words(1))]),
        [((255,) * 3, 0), ((0,) * 3, 255)] * 2 + [((0,) * 3, 255)] * 4,
    ),
    "grey, 2 bits, with a transparent level": (
        png(4, 2, 0, [b"\x1b"], [(b"tRNS", words(2))]),
        [((0,) * 3, 255), ((85,) * 3, 255), ((170,) * 3, 0), ((255,) * 3, 255)],
    ),
    "grey, 4 bits, with a transparent level": (
        png(2, 4, 0, [b"\x5a"], [(b"tRNS", words(5))]),
        [((85,) * 3, 0), ((170,) * 3, 255)],
    ),
    "grey, 8 bits, with a transparent level": (
        png(2, 8, 0, [b"\x05\xa0"], [(b"tRNS", words(5))]),
        [((5,) * 3, 0), ((160,) * 3, 255)],
    ),
    "grey, 16 bits, with a transparent level": (
        png(2, 16, 0, [words(257 * 9, 257 * 90)], [(b"tRNS", words(257 * 9))]),
        [((9,) * 3, 0), ((90,) * 3, 255)],
    ),
}


def row_of(content: bytes, background: tuple[int, int, int]) -> list[list[int]]:
    return pixels_of(decode(content, background))[:, 0].T.tolist()


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_images_are_shown_over_the_background(name: str) -> None:
    content, pixels = TRANSPARENT[name]
    assert is_transparent(EncodedImage("", content))
    assert decode(content).mode == "RGB"
    assert row_of(content, WHITE) == [over(*pixel, (255, 255, 255)) for pixel in pixels]
    assert torch.equal(decoded(content), pixels_of(decode(content, WHITE)))
    for background in (BLACK_BEHIND, BLUE_BEHIND):
        assert row_of(content, background) == [over(*pixel, background) for pixel in pixels]


def test_opaque_images_do_not_show_the_background() -> None:
    photograph = encoded(PHOTOGRAPH.convert("CMYK"))
    for content in (*(content for content, _ in FORMATS.values()), photograph):
        assert not is_transparent(EncodedImage("", content))
        assert torch.equal(pixels_of(decode(content, BLUE_BEHIND)), decoded(content))
    assert not is_transparent(EncodedImage("", b"no image"))
    assert not is_transparent(EncodedImage("", TRANSPARENT["rgb, alpha"][0][:60]))


def test_16_bits_of_each_colour_lose_the_lower_8() -> None:
    content = png(2, 16, 2, [words(257 * 7, 257 * 77, 257 * 177, 0xFFFF, 0x01FF, 0)])
    assert row_of(content, WHITE) == [[7, 77, 177], [255, 1, 0]]


def test_a_task_shows_its_background() -> None:
    content = png(1, 8, 6, [bytes(4)])
    for view in (None, 0):
        task = DecodingTask((EncodedImage("", content),), (0,), (2, 2), 0, view, BLUE_BEHIND)
        assert (decode_task(task)[0] == torch.tensor(BLUE_BEHIND)[:, None, None]).all()


def test_the_ink_of_a_jpeg_is_inverted_as_adobes_is_with_and_without_its_marker() -> None:
    """255 is no ink, as Adobe writes it, and as browsers take every such file."""
    ink = (40, 200, 90, 60)
    marked = encoded(Image.new("CMYK", (16, 16), ink), quality=100)
    place = marked.index(b"\xff\xee\0\x0eAdobe")
    *colours, black = (255 - each for each in ink)
    expected = torch.tensor([each * black / 255 for each in colours])
    for content in (marked, marked[:place] + marked[place + 16 :]):
        assert (decoded(content).float() - expected[:, None, None]).abs().max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_transparent_photograph_is_turned_with_its_alpha(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image = PHOTOGRAPH.convert("RGBA")
    half = Image.new("L", image.size, 255)
    half.paste(0, (0, 0, image.width, image.height // 2))
    image.putalpha(half)
    settings = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    shown = decoded(encoded(image, kind, exif=exif, **settings))
    turned = pixels_of(PHOTOGRAPH.transpose(Image.Transpose.ROTATE_270))
    white = image.height // 2
    assert torch.equal(shown[:, :, :-white], turned[:, :, :-white])
    assert (shown[:, :, -white:] == 255).all()


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
