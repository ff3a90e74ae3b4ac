"""Real coloured pictures in folders by class, from Debian's package openclipart-png.

    python -m tests.benchmarks.openclipart FOLDER [--side 96] [--most 700]

The eight largest categories become classes. Files that differ only in a number, an author's or a
colour's name after the first word are one motif (`arrow-left-red_benj_01`, `arrow-left-blue`), and
whole motifs go to the test split, a fifth of them, so that it has motifs that were not trained on.
Pictures keep their transparency; their shorter side is made `--side` pixels, as a photograph's copy
on the web, so that reading is not what is measured.
"""

import argparse
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

CATEGORIES = Path("/usr/share/openclipart/png")
CLASSES, TEST_SHARE = 8, 5


def motif(file: Path) -> str:
    """What the picture shows, as far as its name tells: its folder and first word."""
    word = re.match(r"[^\W\d_]*", file.stem.lower())
    return f"{file.parent.relative_to(CATEGORIES)}/{word.group() if word else file.stem}"


def chance(words: str) -> int:
    """A number that looks random and is the same everywhere."""
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8])


def chosen(most: int) -> Iterator[tuple[str, str, Path]]:
    """The pictures: split, class and file; at most so many of a class."""
    by_class: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(CATEGORIES.rglob("*.png")):
        by_class[file.relative_to(CATEGORIES).parts[0]].append(file)
    by_class.pop("unsorted", None)
    largest = sorted(by_class, key=lambda name: -len(by_class[name]))[:CLASSES]
    for name in sorted(largest):
        for file in sorted(by_class[name], key=lambda file: chance(str(file)))[:most]:
            yield ("train" if chance(motif(file)) % TEST_SHARE else "test"), name, file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=96, help="of the shorter side, in pixels")
    parser.add_argument("--most", type=int, default=700, help="pictures of a class")
    options = parser.parse_args()
    if not CATEGORIES.is_dir():
        raise SystemExit(f"{CATEGORIES} is missing; install Debian's package openclipart-png")
    counts: dict[tuple[str, str], int] = defaultdict(int)
    Image.MAX_IMAGE_PIXELS = None  # a few are posters
    for split, name, file in chosen(options.most):
        folder = options.folder / split / name
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.open(file).convert("RGBA")
        scale = options.side / min(picture.size)
        size = tuple(max(options.side, round(side * scale)) for side in picture.size)
        picture.resize(size, Image.Resampling.LANCZOS).save(
            folder / f"{chance(str(file)):016x}.png"
        )
        counts[split, name] += 1
    for (split, name), count in sorted(counts.items()):
        print(f"{split}/{name}: {count}")


if __name__ == "__main__":
    main()
