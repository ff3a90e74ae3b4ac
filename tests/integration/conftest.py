"""What integration tests share: a finished search."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from tests.integration.commands import PATIENCE, forget_the_user
from tests.integration.finished_search import EXPERIMENT, Finished

forget_the_user()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the file that takes longest first: started last, it would keep one worker alone."""
    items.sort(key=lambda item: item.path.name != "test_picked.py")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Finished:
    """The search `task-1`, for all who only look at it, or add to its folder. The first worker of
    pytest that needs it runs it, and the others wait."""
    place = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        place = place.parent
    folder, output = place / "finished", place / "finished.txt"
    with FileLock(place / "finished.lock"):
        if not output.exists():
            output.write_text(run_it(folder))
    return Finished(folder, output.read_text())


def run_it(folder: Path) -> str:
    """Runs the search in a user's folder, as the user does; returns what it prints."""
    folder.mkdir()
    (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    launched = subprocess.run(
        [sys.executable, "-m", "search", "launch", "task.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert launched.stderr == ""
    return launched.stdout
