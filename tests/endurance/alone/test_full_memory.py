"""A machine whose memory is filled: this test must be alone on it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from search.record.files import read_record
from search.record.storage import Storage
from tests.integration.commands import succeeded

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 512},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 1, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 3, "learning_rate": 0.1},
    "search": {"trials": 2, "asha": None},
}


def memory() -> dict[str, int]:
    """The machine's, in KiB, as Linux names it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) for name, _, rest in (each.partition(":") for each in lines)}


GIB = 2**20  # in KiB

# In a container Ray counts what the container may take, not what the machine has.
LIMIT = Path("/sys/fs/cgroup/memory.max")
LIMITED = LIMIT.exists() and LIMIT.read_text().strip() != "max"

# Memory is taken in steps, so that Ray's monitor is in time; it looks every 100 ms.
GREEDY = """
import time
from pathlib import Path

from search.session import session
from search.cli.app import app
from search.session.trial import run_trial


def greedy(point, **settings):
    tries = Path(f"tries-{point['trial']}").absolute()
    with tries.open("a") as file:
        file.write("x")
    if point["trial"] == 1 and len(tries.read_text()) == 1:
        taken = []
        for _ in range(36):
            taken.append(b"x" * 2**28)
            time.sleep(0.2)
        time.sleep(60)
    run_trial(point, **settings)


session.run_trial = greedy
app(["launch", "task.yaml", "--name", "greedy"])
"""


@pytest.mark.skipif(
    LIMITED or memory()["MemAvailable"] < 10 * GIB,
    reason="needs 10 GiB of free memory, outside a container that limits it",
)
def test_a_machine_that_runs_out_of_memory_costs_no_trial(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (tmp_path / "start.py").write_text(GREEDY.replace("tries-", f"{tmp_path}/tries-"))
    known = memory()
    full = (known["MemTotal"] - known["MemAvailable"] + 5 * GIB) / known["MemTotal"]
    said = succeeded(
        tmp_path,
        "start.py",
        RAY_memory_usage_threshold=f"{full:.3f}",
        RAY_memory_monitor_refresh_ms="100",
    )
    assert "continues from its checkpoint, after: the machine ran out of memory" in said
    record = read_record(Storage(str(tmp_path / "runs")), "greedy")
    assert [trial.state for trial in record.trials] == ["finished"] * 2
    assert len((tmp_path / "tries-1").read_text()) > 1
