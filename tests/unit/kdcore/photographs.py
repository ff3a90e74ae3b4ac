"""Small photographs that tests make themselves: in folders of files, and as Parquet."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.nn.functional import interpolate

CLASSES = ("cat", "dog", "owl")


def photograph(seed: int, tint: int = 0) -> Image.Image:
    """A smooth picture of 40 to 70 pixels a side, stronger in one of the three channels."""
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(40, 71, (2,), generator=generator).tolist()
    coarse = torch.rand(1, 3, 6, 6, generator=generator) * 150
    coarse[:, tint] += 100
    pixels = interpolate(coarse, (height, width), mode="bilinear")[0].round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def encoded(image: Image.Image, kind: str = "JPEG", **settings: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **settings)
    return content.getvalue()


def png(
    width: int,
    depth: int,
    colour: int,
    rows: Sequence[bytes],
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of any bit depth and colour type, as its specification has it; Pillow writes few."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def write_folders(root: Path, parts: Mapping[str, int], classes: tuple[str, ...] = CLASSES) -> Path:
    """So many JPEG files for each class in each part; a part may be `.`."""
    for number, (part, images) in enumerate(parts.items()):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(images):
                seed = 10_000 * number + 1000 * label + index
                (folder / f"{index:03}.jpg").write_bytes(encoded(photograph(seed, label)))
    return root


def rows_of(folder: Path) -> list[dict[str, object]]:
    """The files of folders of classes as Hugging Face's rows, in their order."""
    return [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "label": path.parent.name}
        for path in sorted(folder.glob("*/*"))
    ]


def write_parquet(
    path: Path, rows: list[dict[str, object]], files: int = 1, row_group_size: int = 7
) -> None:
    """Rows as files whose names have `{}` where their number belongs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    step = -(-len(table) // files)
    for number in range(files):
        part = table.slice(number * step, step)
        name = str(path).format(number)
        # Images are stored as they are, even where some are equal.
        settings = {"use_dictionary": False, "compression": "none"}
        pq.write_table(part, name, row_group_size=row_group_size, **settings)
