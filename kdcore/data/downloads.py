"""Downloads that one process does, while the others wait for it."""

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from kdcore.errors import DataError


def download_once(
    root: Path, is_complete: Callable[[], bool], download: Callable[[], object], otherwise: str
) -> None:
    """Downloads a data set if it is not there.

    Args:
        root: the folder for it.
        is_complete: whether all files are there.
        download: downloads them.
        otherwise: what a user can do if that fails, for the message.

    Raises:
        DataError: the download failed.
    """
    if is_complete():
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):
            if not is_complete():
                download()
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"download to {str(root)!r} failed: {error}; try again, or {otherwise}"
        ) from None
