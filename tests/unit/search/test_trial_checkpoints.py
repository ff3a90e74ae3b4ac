"""A trial's checkpoints: two at a time, and the newest that is whole is used."""

from pathlib import Path
from typing import Any

import pytest

from kdcore.training.checkpoint import FILE_NAME
from search.record.storage import Storage
from search.record.trial_checkpoints import Checkpoints, trial_folder

FOLDER = trial_folder("task-1", 7)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "runs"))


def saved(storage: Storage, local: Path, epochs: int) -> list[dict[str, Any]]:
    """The reports of a trial that saved a checkpoint after each epoch."""
    local.mkdir(exist_ok=True)
    checkpoints = Checkpoints(storage, FOLDER)
    reports: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        (local / FILE_NAME).write_text(f"epoch {epoch}")
        reports.append({"epoch": epoch, "heldout_accuracy": 0.1 + epoch / 3})
        checkpoints.save(local, reports)
    return reports


def damage(storage: Storage, epoch: int) -> None:
    """Truncates the file that holds an epoch."""
    assert storage.local is not None
    for path in (storage.local / FOLDER).glob("*.pt"):
        if path.read_text() == f"epoch {epoch}":
            path.write_text("epo")


def test_the_newest_checkpoint_comes_back_with_all_reports(
    storage: Storage, tmp_path: Path
) -> None:
    reports = saved(storage, tmp_path / "a", 5)
    assert Checkpoints(storage, FOLDER).restore(tmp_path / "b") == reports
    assert (tmp_path / "b" / FILE_NAME).read_text() == "epoch 5"


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(
    storage: Storage, tmp_path: Path
) -> None:
    reports = saved(storage, tmp_path / "a", 5)
    damage(storage, 5)
    checkpoints = Checkpoints(storage, FOLDER)
    assert checkpoints.restore(tmp_path / "b") == reports[:4]
    assert (tmp_path / "b" / FILE_NAME).read_text() == "epoch 4"
    # The one that is whole stays until another is.
    (tmp_path / "b" / FILE_NAME).write_text("epoch 5 again")
    checkpoints.save(tmp_path / "b", reports)
    assert storage.local is not None
    texts = {path.read_text() for path in (storage.local / FOLDER).glob("*.pt")}
    assert texts == {"epoch 4", "epoch 5 again"}


def test_with_both_damaged_or_none_saved_the_trial_begins_anew(
    storage: Storage, tmp_path: Path
) -> None:
    assert Checkpoints(storage, FOLDER).restore(tmp_path / "b") == []
    saved(storage, tmp_path / "a", 2)
    damage(storage, 1)
    damage(storage, 2)
    assert Checkpoints(storage, FOLDER).restore(tmp_path / "b") == []
    assert not (tmp_path / "b" / FILE_NAME).exists()


def test_a_save_that_fails_leaves_what_was_saved(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = saved(storage, tmp_path / "a", 2)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(storage, FOLDER)
    checkpoints.restore(tmp_path / "b")
    (tmp_path / "b" / FILE_NAME).write_text("epoch 3")
    with monkeypatch.context() as patched:
        patched.setattr("search.record.storage.shutil.copyfileobj", full)
        with pytest.raises(OSError, match="No space"):
            checkpoints.save(tmp_path / "b", [*reports, {"epoch": 3}])
    assert Checkpoints(storage, FOLDER).restore(tmp_path / "c") == reports
    assert storage.local is not None
    assert not list((storage.local / FOLDER).glob("*.partial"))
