"""The disk space of a search's cached teacher outputs, and the time that they saved."""

import shutil
from pathlib import Path

from kdcore.teacher_cache.files import FOLDER, cached_files
from search.errors import StorageError
from search.record.record import SearchRecord
from search.record.storage import Storage, workspace_of
from search.record.wording import duration


def cache_report(record: SearchRecord, storage: Storage) -> str:
    """The cache's size and hits, and the time saved, in a few lines.

    Args:
        record: the search.
        storage: its storage; only this machine's cache is counted.
    """
    if record.experiment.cache is None:
        return f"{record.name} has no cache, because its experiment has cache: null"
    files = [path for folder in _folders(record, storage) for path in cached_files(folder)]
    size = sum(path.stat().st_size for path in files)
    views = len({(path.parent, path.name.partition("-")[0]) for path in files})
    hits = sum(trial.views_cached for trial in record.trials)
    computed = sum(trial.views_computed for trial in record.trials)
    saved = sum(trial.teacher_seconds_saved for trial in record.trials)
    trained = sum(trial.train_seconds for trial in record.trials)
    shared = record.experiment.cache.shared
    lines = [
        f"{size / 1e6:,.1f} MB in {len(files)} files for {views} views, in "
        f"{workspace_of(storage) / FOLDER}",
        *([f"shared through {shared}"] if shared else []),
        f"{hits:,} epochs used cached outputs, {computed:,} computed them",
        f"{duration(saved)} of computing saved, compared with {duration(trained)} of training",
    ]
    return "\n".join(lines)


def clear_cache(record: SearchRecord, storage: Storage) -> int:
    """Removes this machine's cached outputs of a search's teachers; returns their size in bytes.

    Other searches with these teachers compute them again.

    Raises:
        StorageError: a file cannot be removed.
    """
    size = 0
    for folder in _folders(record, storage):
        size += sum(path.stat().st_size for path in cached_files(folder))
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise StorageError(f"cannot remove {folder}", error) from None
    return size


def _folders(record: SearchRecord, storage: Storage) -> list[Path]:
    """The folders of the teachers' outputs, one for each teacher, kind of views, precision and
    layout."""
    names = [Path(teacher.folder).name for teacher in record.ready_teachers.values()]
    root = workspace_of(storage) / FOLDER
    return sorted(folder for name in names for folder in root.glob(f"{name}-*"))
