"""The shared part of the cache, which machines read, fill and take turns to compute."""

import hashlib
import os
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from pyarrow import fs

from kdcore.teacher_cache.patience import patiently

# An older claim was left behind by a machine that is gone.
_CLAIM_SECONDS = 600.0
_CLAIM_POLL_SECONDS = 0.5

# How often a machine looks for a shared cache that has stayed away.
_LOOK_AGAIN_SECONDS = 60.0

T = TypeVar("T")


class SharedCache:
    """What trials use of a shared folder. Nothing here fails, however long the folder is away.

    A look-up waits for it as for any storage. If it stays away, a mark on this machine's disk tells
    all trials, which go on without it and look for it again now and then.

    Args:
        uri: folder, or a URI that pyarrow supports.
        folder: name of the cache's folder in it.
        local: the folder of this machine's cache, where the mark is.
    """

    def __init__(self, uri: str, folder: str, local: Path) -> None:
        self._uri, self._name = uri, folder
        self._mark = local / f"shared-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.away"
        self._warned = False

    @cached_property
    def _there(self) -> "SharedFolder":
        return SharedFolder(self._uri, self._name)  # asks a bucket for its region

    def fetch(self, path: Path) -> bool:
        """Downloads a file; False if it is not there."""
        return self._look(lambda: self._there.fetch(path), False)

    def wait_or_claim(self, paths: Sequence[Path]) -> bool:
        """Claims the computation of some files, or waits for the machine that claimed it first.

        Returns:
            True if the files were fetched, so that nothing is left to compute.
        """
        if not self._attempt(lambda: self._there.claim(paths)):
            return False
        while (turn := self._look(lambda: self._there.turn(paths), "ours")) == "theirs":
            time.sleep(_CLAIM_POLL_SECONDS)
        return turn == "fetched"

    def put(self, path: Path) -> None:
        """Uploads a file."""
        self._attempt(lambda: self._there.put(path))

    def drop(self, path: Path) -> None:
        """Removes a damaged file, so that it is not fetched again."""
        self._attempt(lambda: self._there.drop(path))

    def release(self, paths: Sequence[Path]) -> None:
        """Releases a claim, whether or not the files could be computed."""
        self._attempt(lambda: self._there.release(paths))

    def _look(self, act: Callable[[], T], otherwise: T) -> T:
        """What is found, after some minutes of waiting if need be."""
        marked = self._marked_seconds()
        if marked is not None and marked < _LOOK_AGAIN_SECONDS:
            return otherwise
        try:
            if marked is None:
                return patiently(act)
            self._mark.touch()  # one look is enough for all trials
            found = act()
            self._mark.unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):
                self._mark.touch()
            self._warn(error)
            return otherwise
        return found

    def _attempt(self, act: Callable[[], None]) -> bool:
        """Whether it was done; nothing depends on it, so that it is not waited for."""
        if self._marked_seconds() is not None:
            return False
        try:
            act()
        except OSError as error:
            self._warn(error)
            return False
        return True

    def _marked_seconds(self) -> float | None:
        """Seconds since the folder was last found to be away; none if it is there."""
        try:
            return time.time() - self._mark.stat().st_mtime
        except OSError:
            return None

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the shared cache {self._uri} fails ({error}); this trial goes on without it, and "
                f"looks for it again now and then",
                stacklevel=5,
            )


class SharedFolder:
    """A folder or bucket that several machines can reach, with the files of the local cache.

    Every method may raise OSError.

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
        try:
            fs.copy_files(source, str(partial), self._files, fs.LocalFileSystem())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return True

    def drop(self, path: Path) -> None:
        """Removes a file."""
        with suppress(FileNotFoundError):
            self._files.delete_file(f"{self._folder}/{path.name}")

    def put(self, path: Path) -> None:
        """Uploads a file, atomically where the file system can rename."""
        self._files.create_dir(self._folder)
        partial = f"{self._folder}/.{path.name}.{self._name}.partial"
        try:
            fs.copy_files(str(path), partial, fs.LocalFileSystem(), self._files)
            self._files.move(partial, f"{self._folder}/{path.name}")
        except OSError:
            with suppress(OSError):
                self._files.delete_file(partial)  # a full disk gets its space back
            raise

    def claim(self, paths: Sequence[Path]) -> None:
        """Claims the computation of some files."""
        claim = self._claim_on(paths)
        self._files.create_dir(claim.rpartition("/")[0])
        with self._files.open_output_stream(claim) as stream:
            stream.write(b"claimed")

    def turn(self, paths: Sequence[Path]) -> Literal["fetched", "ours", "theirs"]:
        """Whether the claimed files were fetched, or whose turn it is to compute them."""
        if all(self.fetch(path) for path in paths):
            return "fetched"
        claims, _, _ = self._claim_on(paths).rpartition("/")
        now = time.time()
        living = [
            (info.mtime.timestamp(), info.base_name)
            for info in self._files.get_file_info(fs.FileSelector(claims))
            if info.mtime is not None and now - info.mtime.timestamp() < _CLAIM_SECONDS
        ]
        return "ours" if not living or min(living)[1] == self._name else "theirs"

    def release(self, paths: Sequence[Path]) -> None:
        """Releases a claim."""
        with suppress(FileNotFoundError):
            self._files.delete_file(self._claim_on(paths))

    def _claim_on(self, paths: Sequence[Path]) -> str:
        return f"{self._folder}/claims-{paths[0].stem}/{self._name}"
