"""The pixels of an image in a file that all processes of a machine map into memory."""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from kdcore.errors import DataError


@dataclass(frozen=True)
class KeptPixels:
    """Where the pixels of a decoded image lie.

    Args:
        path: of the file.
        inode: of the file, which another one takes the place of if it is made again.
        begin: the first byte.
        height: in pixels.
        width: likewise.
        crc32: of the bytes.
    """

    path: Path
    inode: int
    begin: int
    height: int
    width: int
    crc32: int

    def read(self) -> np.ndarray:
        """The pixels, [height, width, 3], uint8, read-only; verified at their first use.

        Raises:
            DataError: they are damaged.
        """
        place = self.path, self.inode
        pixels = _mapped(*place)[self.begin : self.begin + 3 * self.height * self.width]
        if (*place, self.begin) not in _verified:
            if zlib.crc32(pixels.data) != self.crc32:
                raise DataError(
                    f"damaged file of decoded images {self.path}: the checksum of the pixels from "
                    f"byte {self.begin} on is wrong; remove the file, and it is made again"
                )
            _verified.add((*place, self.begin))
        return pixels.reshape(self.height, self.width, 3)


_verified: set[tuple[Path, int, int]] = set()


@lru_cache(maxsize=8)
def _mapped(path: Path, inode: int) -> np.ndarray:
    return np.memmap(path, np.uint8, "r")
