import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from search.session.scratch import scratch_folder

PROCESS = """
from search.session.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "checkpoint.pt").write_text("large")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_a_killed_process_left_is_removed_and_a_living_ones_stays(temporary: Path) -> None:
    living, killed = (
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    )
    with living, killed:
        theirs = []
        for each in (living, killed):
            assert each.stdout is not None
            theirs.append(Path(each.stdout.readline().strip()))
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        with scratch_folder() as own:
            assert sorted(temporary.iterdir()) == sorted([theirs[0], own])
            assert (theirs[0] / "checkpoint.pt").read_text() == "large"
        living.communicate("\n")
    assert living.returncode == 0
    assert not list(temporary.iterdir())


def test_it_goes_after_a_mistake_too(temporary: Path) -> None:
    def fails() -> None:
        with scratch_folder() as folder:
            (folder / "checkpoint.pt").touch()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert not list(temporary.iterdir())
