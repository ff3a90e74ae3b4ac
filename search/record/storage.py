"""Where searches are kept: a folder, or a bucket that pyarrow can reach."""

import io
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from pyarrow import fs

# Large enough for an object store, small beside a checkpoint of hundreds of megabytes.
_PIECE = 8 * 2**20

# How long, and how often, something is tried again while a storage is away or a disk is full.
PATIENCE_SECONDS, RETRY_SECONDS = 180.0, 2.0
T = TypeVar("T")


def patiently(act: Callable[[], T]) -> T:
    """Tries again while a storage is away or a disk is full, for some minutes.

    Raises:
        OSError: it lasted longer.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return act()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


class Storage:
    """A folder on any file system, addressed by paths relative to it.

    Args:
        location: a local folder, or a URI like `s3://bucket/folder`.

    Attributes:
        uri: the location, absolute; what another machine opens.
        local: the folder, where it is a local one.
    """

    def __init__(self, location: str) -> None:
        if "://" in location and not location.startswith("file://"):
            self.uri = location.rstrip("/")
            self.local: Path | None = None
            self._filesystem, self._root = fs.FileSystem.from_uri(location)
        else:
            self.local = Path(location.removeprefix("file://")).expanduser().absolute()
            self.uri = str(self.local)
            self._filesystem, self._root = fs.LocalFileSystem(), str(self.local)

    def __truediv__(self, path: str) -> "Storage":
        """The storage of a folder below this one."""
        location, question, query = self.uri.partition("?")
        return Storage(f"{location}/{path}{question}{query}")

    def relative(self, path: str) -> str:
        """A path of the file system as one relative to this folder."""
        return os.path.relpath(path, self._root)

    def exists(self, path: str) -> bool:
        info = self._filesystem.get_file_info(self._path(path))
        return bool(info.type != fs.FileType.NotFound)

    def names(self) -> list[str]:
        """What lies directly in this folder; nothing where it does not exist."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        return [info.base_name for info in self._filesystem.get_file_info(selector)]

    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            OSError: it cannot be read.
        """
        with self._filesystem.open_input_stream(self._path(path)) as stream:
            content: bytes = stream.read()
        return content

    def write(self, path: str, content: bytes) -> None:
        """Writes a file whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        self._write(path, io.BytesIO(content))

    def copy_in(self, file: Path, path: str) -> None:
        """Copies a local file to here, whole or not at all.

        Raises:
            OSError: it cannot be read, or not written.
        """
        with file.open("rb") as source:
            self._write(path, source)

    def copy_out(self, path: str, file: Path) -> None:
        """Copies a file from here to a local one.

        Raises:
            OSError: it cannot be read, or not written.
        """
        with self._filesystem.open_input_stream(self._path(path)) as source, file.open("wb") as to:
            shutil.copyfileobj(source, to, _PIECE)

    def remove(self, path: str) -> None:
        self._filesystem.delete_file(self._path(path))

    def upload(self, folder: Path, path: str) -> None:
        """Copies a local folder's files into a folder below this one."""
        self._filesystem.create_dir(self._path(path), recursive=True)
        fs.copy_files(str(folder), self._path(path), fs.LocalFileSystem(), self._filesystem)

    def download(self, path: str, folder: Path) -> None:
        """Copies a folder below this one into a local folder.

        Raises:
            OSError: there is no such folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        fs.copy_files(self._path(path), str(folder), self._filesystem, fs.LocalFileSystem())

    def _write(self, path: str, content: BinaryIO) -> None:
        target = self._path(path)
        if self.local is None:  # an object appears when its upload is complete
            self._filesystem.create_dir(os.path.dirname(target), recursive=True)
            with self._filesystem.open_output_stream(target) as stream:
                shutil.copyfileobj(content, stream, _PIECE)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        partial = f"{target}.{os.getpid()}.partial"
        try:
            with open(partial, "wb") as file:
                shutil.copyfileobj(content, file, _PIECE)
                file.flush()
                os.fsync(file.fileno())  # else a rename can outlive its content in a power cut
            os.replace(partial, target)
        except OSError:
            with suppress(OSError):
                os.unlink(partial)  # a full disk gets its space back
            raise

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"


def workspace_of(storage: Storage) -> Path:
    """Where this machine keeps image tables and teachers: in a local storage, else in the user's
    cache folder."""
    return storage.local or Path.home() / ".cache" / "kdsearch"


def local_home(storage: Storage) -> Path:
    """The folder on this machine for logs, the embedded MLflow store and exports."""
    return storage.local or Path("runs").absolute()


def default_tracking_uri(storage: Storage) -> str:
    """The embedded MLflow store."""
    return f"sqlite:///{local_home(storage) / 'mlflow.db'}"
