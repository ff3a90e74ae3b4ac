"""What a search's cached teacher outputs take, and what they saved."""

import shutil
from pathlib import Path

from kdcore.teacher_cache.files import FOLDER, cached_files
from search.record.record import SearchRecord
from search.record.storage import Storage, workspace_of
from search.record.wording import duration


def cache_report(record: SearchRecord, storage: Storage) -> str:
    """Size, hits and seconds saved, in words.

    Args:
        record: the search.
        storage: where it is kept; the cache is that of this machine.
    """
    if record.experiment.cache is None:
        return f"{record.name} has no cache: its experiment says cache: null"
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
        *([f"shared by way of {shared}"] if shared else []),
        f"{hits} epochs found the teacher's outputs, {computed} computed them",
        f"{duration(saved)} of the teacher's work saved, beside {duration(trained)} of training",
    ]
    return "\n".join(lines)


def clear_cache(record: SearchRecord, storage: Storage) -> int:
    """Removes the cached outputs of a search's teacher on this machine; returns their bytes.

    Other searches with this teacher compute them again.
    """
    size = 0
    for folder in _folders(record, storage):
        size += sum(path.stat().st_size for path in cached_files(folder))
        shutil.rmtree(folder)
    return size


def _folders(record: SearchRecord, storage: Storage) -> list[Path]:
    """Those of the search's teacher; views, precisions and layouts have one each."""
    if record.teacher is None:
        return []
    teacher = Path(record.teacher).name
    return sorted((workspace_of(storage) / FOLDER).glob(f"{teacher}-*"))
