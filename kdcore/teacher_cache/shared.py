"""The shared part of the cache, which machines read, fill and take turns to compute."""

import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pyarrow import fs

# An older claim was left behind by a machine that is gone.
_CLAIM_SECONDS = 600.0
_CLAIM_POLL_SECONDS = 0.5


class SharedFolder:
    """A folder or bucket that several machines can reach, with the files of the local cache.

    Args:
        uri: folder, or a URI that pyarrow supports.
        folder: name of the cache's folder in it.
    """

    def __init__(self, uri: str, folder: str) -> None:
        located = uri if "://" in uri else Path(uri).absolute().as_uri()
        self._files, root = fs.FileSystem.from_uri(located)
        self._folder = f"{root.rstrip('/')}/{folder}"
        self._name = uuid.uuid4().hex

    def fetch(self, path: Path) -> bool:
        """Downloads a file; False if it is not there."""
        source = f"{self._folder}/{path.name}"
        if self._files.get_file_info(source).type != fs.FileType.File:
            return False
        partial = path.with_name(f".{path.name}.{self._name}.partial")
        fs.copy_files(source, str(partial), self._files, fs.LocalFileSystem())
        os.replace(partial, path)
        return True

    def drop(self, path: Path) -> None:
        """Removes a damaged file, so that it is not fetched again."""
        with suppress(FileNotFoundError):
            self._files.delete_file(f"{self._folder}/{path.name}")

    def put(self, path: Path) -> None:
        """Uploads a file, atomically where the file system can rename."""
        self._files.create_dir(self._folder)
        partial = f"{self._folder}/.{path.name}.{self._name}.partial"
        fs.copy_files(str(path), partial, fs.LocalFileSystem(), self._files)
        self._files.move(partial, f"{self._folder}/{path.name}")

    def wait_or_claim(self, paths: Sequence[Path]) -> bool:
        """Claims the computation of some files, or waits for the machine that claimed it first.

        Returns:
            True if the files were fetched, so that nothing is left to compute.
        """
        claim = self._claim_on(paths)
        claims, _, _ = claim.rpartition("/")
        self._files.create_dir(claims)
        with self._files.open_output_stream(claim) as stream:
            stream.write(b"claimed")
        while True:
            if all(self.fetch(path) for path in paths):
                self.release(paths)
                return True
            now = time.time()
            living = [
                (info.mtime.timestamp(), info.base_name)
                for info in self._files.get_file_info(fs.FileSelector(claims))
                if info.mtime is not None and now - info.mtime.timestamp() < _CLAIM_SECONDS
            ]
            if not living or min(living)[1] == self._name:
                return False
            time.sleep(_CLAIM_POLL_SECONDS)

    def release(self, paths: Sequence[Path]) -> None:
        """Releases a claim, whether or not the files could be computed."""
        with suppress(FileNotFoundError):
            self._files.delete_file(self._claim_on(paths))

    def _claim_on(self, paths: Sequence[Path]) -> str:
        return f"{self._folder}/claims-{paths[0].stem}/{self._name}"
