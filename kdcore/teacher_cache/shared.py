"""TODO-DOC"""

import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pyarrow import fs

# A claim on a view older than this was left behind by a machine that is gone.
_CLAIM_SECONDS = 600.0
_CLAIM_POLL_SECONDS = 0.5


class SharedFolder:
    """A place that several machines reach, with the same files as the local folder.

    Args:
        uri: a folder or a URI that pyarrow knows.
        folder: of the cache, below it.
    """

    def __init__(self, uri: str, folder: str) -> None:
        located = uri if "://" in uri else Path(uri).absolute().as_uri()
        self._files, root = fs.FileSystem.from_uri(located)
        self._folder = f"{root.rstrip('/')}/{folder}"
        self._name = uuid.uuid4().hex

    def fetch(self, path: Path) -> bool:
        """Copies a file here, if it is there."""
        source = f"{self._folder}/{path.name}"
        if self._files.get_file_info(source).type != fs.FileType.File:
            return False
        partial = path.with_name(f".{path.name}.{self._name}.partial")
        fs.copy_files(source, str(partial), self._files, fs.LocalFileSystem())
        os.replace(partial, path)
        return True

    def drop(self, path: Path) -> None:
        """Removes the file there, if there is one; it would come back as damaged as it was."""
        with suppress(FileNotFoundError):
            self._files.delete_file(f"{self._folder}/{path.name}")

    def keep(self, path: Path) -> None:
        """Copies a file there; whole or not at all, as far as the place can do that."""
        self._files.create_dir(self._folder)
        partial = f"{self._folder}/.{path.name}.{self._name}.partial"
        fs.copy_files(str(path), partial, fs.LocalFileSystem(), self._files)
        self._files.move(partial, f"{self._folder}/{path.name}")

    def wait_or_claim(self, paths: Sequence[Path]) -> bool:
        """Claims the computation of some files, or waits for the machine that claimed it first.

        Returns:
            Whether the files were fetched, so that nothing is left to compute.
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
        """Takes a claim back: the files are there, or this machine could not make them."""
        with suppress(FileNotFoundError):
            self._files.delete_file(self._claim_on(paths))

    def _claim_on(self, paths: Sequence[Path]) -> str:
        return f"{self._folder}/claims-{paths[0].stem}/{self._name}"
