"""A run's checkpoint: whole or not at all, and no code in it."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from kdcore.training.checkpoint import FILE_NAME, read_checkpoint, write_checkpoint
from kdcore.training.loop import best_student

CPU = torch.device("cpu")
STATE = {
    "epoch": 3,
    "identity": "a run",
    "weights": {"layer": torch.arange(5000.0)},
    "list": [1, 2.5, "three", None, (4, 5)],
}


def test_a_state_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "on the way"
    write_checkpoint(folder, STATE)
    state = read_checkpoint(folder, CPU)
    assert state is not None
    assert torch.equal(state["weights"].pop("layer"), STATE["weights"]["layer"])
    assert state == STATE | {"weights": {}}
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


def test_where_nothing_was_written_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, CPU) is None
    assert read_checkpoint(tmp_path / "nowhere", CPU) is None
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}"):
        best_student(tmp_path)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_an_interrupted_write_leaves_the_old_checkpoint(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, STATE)

    def interrupted(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupted)
        with pytest.raises(OSError, match="no space left"):
            write_checkpoint(tmp_path, {"epoch": 4})
    state = read_checkpoint(tmp_path, CPU)
    assert state is not None
    assert state["epoch"] == 3
    write_checkpoint(tmp_path, {"epoch": 4})
    assert read_checkpoint(tmp_path, CPU) == {"epoch": 4}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_with_its_name_and_the_way_out(
    share: float, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, STATE)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"checkpoint {path} is damaged .*; remove it"):
        read_checkpoint(tmp_path, CPU)


@pytest.mark.parametrize(
    "content",
    [b"\0" * 3000, b"no checkpoint\n" * 300, b"PK\x03\x04" + b"\xff" * 300, b"\x80\x02]q\x00."],
    ids=["zeros", "text", "half a zip", "a pickled list"],
)
def test_garbage_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=f"checkpoint {tmp_path / FILE_NAME} is damaged"):
        read_checkpoint(tmp_path, CPU)


class _Code:
    """An object whose unpickling runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(writer: str, tmp_path: Path) -> None:
    state, path = {"epoch": 1, "best": _Code(tmp_path / "ran")}, tmp_path / FILE_NAME
    if writer == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))  # PyTorch warns of later ones
    with pytest.raises(ValueError, match=f"checkpoint {path} is damaged"):
        read_checkpoint(tmp_path, CPU)
    assert not (tmp_path / "ran").exists()
