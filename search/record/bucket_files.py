"""Files of an object store or any other file system that pyarrow reaches by a URI."""

import io
import os
import random
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs

# Large enough for an object store, small beside a checkpoint of hundreds of megabytes.
_PIECE = 8 * 2**20

# An older claim was left behind by a process that died.
_CLAIM_SECONDS = 60.0


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

    def read_from(self, path: str, position: int) -> bytes:
        with self._there.open_input_file(self._path(path)) as file:
            length = file.size() - position
            content: bytes = file.read_at(length, position) if length > 0 else b""
        return content

    def write(self, path: str, content: BinaryIO) -> None:
        target = self._path(path)
        self._there.create_dir(os.path.dirname(target), recursive=True)
        with self._there.open_output_stream(target) as stream:  # appears when it is complete
            shutil.copyfileobj(content, stream, _PIECE)

    def extend(self, path: str, before: bytes, content: bytes) -> None:
        self.write(path, io.BytesIO(before + content))

    def create(self, path: str, content: bytes) -> bool:
        """Needs of the bucket only that a list has what was written before it, as those of S3,
        Google and Azure have; pyarrow offers no conditional write.

        Who wants to create a file first puts up a claim, then looks for others' claims. Of two at a
        time at least the later one sees the other's, so at most one finds itself alone.
        """
        while True:
            started = time.monotonic()
            claims, ours = f"{path}.claims", uuid.uuid4().hex
            self.write(f"{claims}/{ours}", io.BytesIO(b"claimed"))
            try:
                if self.exists(path):
                    return False
                alone = self._is_alone(claims, ours) and not self.exists(path)
                if alone and time.monotonic() - started < _CLAIM_SECONDS / 2:
                    self.write(path, io.BytesIO(content))
                    return True
            finally:
                with suppress(FileNotFoundError):
                    self.remove(f"{claims}/{ours}")
            time.sleep(random.uniform(0.05, 0.5))

    def _is_alone(self, claims: str, ours: str) -> bool:
        """Whether nobody else has a claim; one of a process that died does not count for long."""
        selector = fs.FileSelector(self._path(claims), allow_not_found=True)
        made = {
            info.base_name: info.mtime.timestamp()
            for info in self._there.get_file_info(selector)
            if info.mtime is not None
        }
        # All times are the bucket's, so no machine's clock matters.
        return ours in made and not any(
            made[ours] - when < _CLAIM_SECONDS for name, when in made.items() if name != ours
        )

    def copy_out(self, path: str, file: Path) -> None:
        with self._there.open_input_stream(self._path(path)) as source, file.open("wb") as to:
            shutil.copyfileobj(source, to, _PIECE)

    def remove(self, path: str) -> None:
        self._there.delete_file(self._path(path))

    def remove_folder(self, path: str) -> None:
        self._there.delete_dir(self._path(path))

    def upload(self, folder: Path, path: str) -> None:
        self._there.create_dir(self._path(path), recursive=True)
        fs.copy_files(str(folder), self._path(path), fs.LocalFileSystem(), self._there)

    def download(self, path: str, folder: Path) -> None:
        fs.copy_files(self._path(path), str(folder), self._there, fs.LocalFileSystem())

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"
