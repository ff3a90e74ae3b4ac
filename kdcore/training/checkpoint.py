"""Crash-safe checkpoints, without pickled code."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdcore.errors import CheckpointError

FILE_NAME = "checkpoint.pt"


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replaces the folder's checkpoint atomically: a crash leaves the old or the new one.

    Args:
        folder: created if missing.
        state: tensors, numbers, strings, and lists and dicts of those.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE_NAME}.partial"
    with partial.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / FILE_NAME)


def read_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """Reads the folder's checkpoint.

    Args:
        folder: that contains it.
        device: where its tensors go.

    Returns:
        The state, or None if there is no checkpoint.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    # PyTorch raises arbitrary errors for damaged files, IndexError among others.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {path} is damaged ({reason}); remove it to start again"
        ) from None
    return state
