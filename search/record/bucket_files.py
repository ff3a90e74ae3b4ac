"""Files of an object store or any other file system that pyarrow reaches by a URI."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs

# Large enough for an object store, small beside a checkpoint of hundreds of megabytes.
_PIECE = 8 * 2**20


class BucketFiles:
    """See `Files`.

    Args:
        uri: of the folder.

    Raises:
        ValueError: of a kind that pyarrow does not know.
    """

    def __init__(self, uri: str) -> None:
        self._there, self._root = fs.FileSystem.from_uri(uri)

    def exists(self, path: str) -> bool:
        info = self._there.get_file_info(self._path(path))
        return bool(info.type != fs.FileType.NotFound)

    def names(self) -> list[str]:
        selector = fs.FileSelector(self._root, allow_not_found=True)
        return [info.base_name for info in self._there.get_file_info(selector)]

    def read(self, path: str) -> bytes:
        with self._there.open_input_stream(self._path(path)) as stream:
            content: bytes = stream.read()
        return content

    def write(self, path: str, content: BinaryIO) -> None:
        target = self._path(path)
        self._there.create_dir(os.path.dirname(target), recursive=True)
        with self._there.open_output_stream(target) as stream:  # appears when it is complete
            shutil.copyfileobj(content, stream, _PIECE)

    def copy_out(self, path: str, file: Path) -> None:
        with self._there.open_input_stream(self._path(path)) as source, file.open("wb") as to:
            shutil.copyfileobj(source, to, _PIECE)

    def remove(self, path: str) -> None:
        self._there.delete_file(self._path(path))

    def upload(self, folder: Path, path: str) -> None:
        self._there.create_dir(self._path(path), recursive=True)
        fs.copy_files(str(folder), self._path(path), fs.LocalFileSystem(), self._there)

    def download(self, path: str, folder: Path) -> None:
        fs.copy_files(self._path(path), str(folder), self._there, fs.LocalFileSystem())

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"
