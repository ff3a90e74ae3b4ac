"""What integration tests share: a finished search."""

import subprocess
import sys

import pytest
import yaml

from search.record import read_record
from search.storage import Storage
from tests.integration.commands import forget_the_user
from tests.integration.finished_search import EXPERIMENT, Finished

forget_the_user()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The search `task-1`, for all who only look at it, or add to its folder."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    launched = subprocess.run(
        [sys.executable, "-m", "search", "launch", "task.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert launched.stderr == ""
    record = read_record(Storage(str(folder / "runs")), "task-1")
    return Finished(folder, launched.stdout, record)
