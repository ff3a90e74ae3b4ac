"""Where searches are stored: a folder, or a bucket that pyarrow can reach."""

import errno
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from search.errors import SearchError, StorageError

# Of file systems without hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EMLINK)


@contextmanager
def _trying_to(what: str) -> Iterator[None]:
    """Says of an error what could not be done.

    Raises:
        StorageError: instead of any OSError.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(what, error) from None


class Files(Protocol):
    """The files below one folder, of whatever kind; every method may raise OSError."""

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder."""

    def names(self) -> list[str]:
        """What lies directly in the folder; nothing where it does not exist."""

    def read(self, path: str) -> bytes:
        """A file's content."""

    def read_from(self, path: str, position: int) -> bytes:
        """A file's content from a position on."""

    def write(self, path: str, content: BinaryIO) -> None:
        """Writes a file whole or not at all."""

    def extend(self, path: str, before: bytes, content: bytes) -> None:
        """Adds to a file that has begun with `before`, in the place of what else is in it."""

    def create(self, path: str, content: bytes) -> bool:
        """Writes a file whole, where nobody else has written one; False if somebody has."""

    def copy_out(self, path: str, file: Path) -> None:
        """Copies a file to a local one."""

    def remove(self, path: str) -> None:
        """Removes a file."""

    def remove_folder(self, path: str) -> None:
        """Removes a folder with all that is in it."""

    def upload(self, folder: Path, path: str) -> None:
        """Copies a local folder's files into a folder below."""

    def download(self, path: str, folder: Path) -> None:
        """Copies a folder below into a local one, which exists."""


class _LocalFiles:
    """Files of this machine, or of a network file system that it mounts."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def exists(self, path: str) -> bool:
        return (self._root / path).exists()

    def names(self) -> list[str]:
        return os.listdir(self._root) if self._root.is_dir() else []

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def read_from(self, path: str, position: int) -> bytes:
        with (self._root / path).open("rb") as file:
            file.seek(position)
            return file.read()

    def write(self, path: str, content: BinaryIO) -> None:
        target = self._root / path
        with _partial(target, content) as partial:
            os.replace(partial, target)

    def extend(self, path: str, before: bytes, content: bytes) -> None:
        with (self._root / path).open("r+b" if before else "wb") as file:
            file.truncate(len(before))
            file.seek(len(before))
            file.write(content)

    def create(self, path: str, content: bytes) -> bool:
        target = self._root / path
        with _partial(target, io.BytesIO(content)) as partial:
            try:
                os.link(partial, target)
            except FileExistsError:
                # A network file system may have lost the answer to the first of two requests.
                return partial.stat().st_nlink == 2
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _created_exclusively(target, content)
        return True

    def copy_out(self, path: str, file: Path) -> None:
        shutil.copyfile(self._root / path, file)

    def remove(self, path: str) -> None:
        (self._root / path).unlink()

    def remove_folder(self, path: str) -> None:
        shutil.rmtree(self._root / path)

    def upload(self, folder: Path, path: str) -> None:
        shutil.copytree(folder, self._root / path, dirs_exist_ok=True)

    def download(self, path: str, folder: Path) -> None:
        shutil.copytree(self._root / path, folder, dirs_exist_ok=True)


@contextmanager
def _partial(target: Path, content: BinaryIO) -> Iterator[Path]:
    """A file beside the target that has the content; what is left of it in the end is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            shutil.copyfileobj(content, file, 2**20)
            file.flush()
            os.fsync(file.fileno())  # else the name can outlive its content in a power cut
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink()  # a full disk gets its space back


def _created_exclusively(target: Path, content: bytes) -> bool:
    """As `create` without hard links; a reader may see the file half written."""
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


class Storage:
    """A folder on any file system, addressed by paths relative to it.

    Args:
        location: a local folder, or a URI like `s3://bucket/folder`.

    Attributes:
        uri: the location, absolute; what another machine opens.
        local: the folder, where it is a local one.

    Raises:
        SearchError: the location is neither.
    """

    def __init__(self, location: str) -> None:
        self._files: Files
        if "://" in location and not location.startswith("file://"):
            from search.record.bucket_files import BucketFiles

            self.uri = location.rstrip("/")
            self.local: Path | None = None
            try:
                self._files = BucketFiles(location)
            except ValueError as error:  # of a scheme that pyarrow does not know
                raise SearchError(
                    f"--storage is {location!r}, but must be a folder or a URI like "
                    f"s3://bucket/folder: {str(error).splitlines()[0]}"
                ) from None
        else:
            self.local = Path(location.removeprefix("file://")).expanduser().absolute()
            self.uri = str(self.local)
            self._files = _LocalFiles(self.local)

    def __truediv__(self, path: str) -> "Storage":
        """The storage of a folder below this one."""
        location, question, query = self.uri.partition("?")
        return Storage(f"{location}/{path}{question}{query}")

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder.

        Raises:
            StorageError: the storage cannot be read.
        """
        with _trying_to(f"{self.uri} cannot be read"):
            return self._files.exists(path)

    def names(self) -> list[str]:
        """What lies directly in this folder; nothing where it does not exist.

        Raises:
            StorageError: the storage cannot be read.
        """
        with _trying_to(f"{self.uri} cannot be read"):
            return self._files.names()

    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            StorageError: it cannot be read.
        """
        with _trying_to(f"{self.uri}/{path} cannot be read"):
            return self._files.read(path)

    def read_from(self, path: str, position: int) -> bytes:
        """A file's content from a position on; nothing beyond its end.

        Raises:
            StorageError: it cannot be read.
        """
        with _trying_to(f"{self.uri}/{path} cannot be read"):
            return self._files.read_from(path, position)

    def extend(self, path: str, before: bytes, content: bytes) -> None:
        """Adds to the end of a file, for which a bucket writes it again: keep such files small.

        On a disk a reader may see a part of what is added; so it is after an error, until the same
        is added once more.

        Args:
            path: of the file; its folder exists.
            before: all that was added without an error so far; the file begins with it.
            content: what is added.

        Raises:
            StorageError: it cannot be written.
        """
        with _trying_to(f"{self.uri}/{path} cannot be written"):
            self._files.extend(path, before, content)

    def write(self, path: str, content: bytes) -> None:
        """Writes a file whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        with _trying_to(f"{self.uri}/{path} cannot be written"):
            self._files.write(path, io.BytesIO(content))

    def create(self, path: str, content: bytes) -> bool:
        """Writes a file that must not exist yet: of several processes at a time, on whatever
        machines, at most one succeeds.

        Returns:
            Whether it was this one.

        Raises:
            StorageError: it cannot be written.
        """
        with _trying_to(f"{self.uri}/{path} cannot be written"):
            return self._files.create(path, content)

    def copy_in(self, file: Path, path: str) -> None:
        """Copies a local file to here, whole or not at all.

        Raises:
            StorageError: it cannot be read, or not written.
        """
        with (
            _trying_to(f"{file} cannot be copied to {self.uri}/{path}"),
            file.open("rb") as source,
        ):
            self._files.write(path, source)

    def copy_out(self, path: str, file: Path) -> None:
        """Copies a file from here to a local one.

        Raises:
            StorageError: it cannot be read, or not written.
        """
        with _trying_to(f"{self.uri}/{path} cannot be copied to {file}"):
            self._files.copy_out(path, file)

    def remove(self, path: str) -> None:
        """Removes a file.

        Raises:
            StorageError: there is none, or it cannot be removed.
        """
        with _trying_to(f"{self.uri}/{path} cannot be removed"):
            self._files.remove(path)

    def remove_folder(self, path: str) -> None:
        """Removes a folder with all that is in it.

        Raises:
            StorageError: there is none, or it cannot be removed.
        """
        with _trying_to(f"{self.uri}/{path} cannot be removed"):
            self._files.remove_folder(path)

    def upload(self, folder: Path, path: str) -> None:
        """Copies a local folder's files into a folder below this one.

        Raises:
            StorageError: it cannot be read, or not written.
        """
        with _trying_to(f"{folder} cannot be copied to {self.uri}/{path}"):
            self._files.upload(folder, path)

    def download(self, path: str, folder: Path) -> None:
        """Copies a folder below this one into a local folder.

        Raises:
            StorageError: there is no such folder, or it cannot be written to.
        """
        with _trying_to(f"{self.uri}/{path} cannot be copied to {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            self._files.download(path, folder)


def search_storage(storage: Storage, name: str) -> Storage:
    """Where a search keeps what is its own."""
    return storage / f"searches/{name}"


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
