"""Eight searches on one cluster, with one storage, one tracking server and one shared cache, while
drivers, trials, deliveries and the server are killed: in the end all of it agrees."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdcore import DataConfig
from kdcore.data.image_data import open_data
from kdcore.teacher_cache.files import cached_files, read_outputs
from search.record.files import read_record, search_names
from search.record.storage import Storage
from tests.integration import checks
from tests.integration.commands import PATIENCE, Command
from tests.integration.mlflow_server import start_server, stop_server
from tests.integration.ray_cluster import RayCluster, free_port, processes_below

pytestmark = pytest.mark.integration

SEARCHES, CPUS = 8, 4
BUSY = 4  # so many searches run at least, while something is killed
KINDS = ("driver", "trial", "delivery", "driver", "server")  # of what is killed
DATA: dict[str, Any] = {"name": "digits", "heldout_fraction": 0.2, "train_images": 512}
EXPERIMENT: dict[str, Any] = {
    "data": DATA,
    "teacher": {"backbone": "resnet8", "training": {"epochs": 2, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd", "at"]],
    "training": {"epochs": 8, "learning_rate": 0.1, "schedule": "constant"},
    "search": {
        "trials": 3,
        "asha": {"grace_epochs": 2, "reduction": 2},
        "concurrent_trials": 1,
    },
}


class Team:
    """Those who search, and what they share.

    Args:
        folder: of all of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage = folder, Storage(str(folder / "runs"))
        self._cluster = RayCluster(folder, head_cpus=CPUS)
        self._port = free_port()
        self._server = start_server(folder, self._port)
        self._drivers: dict[str, Command] = {}
        self._chance = random.Random(0)
        for number in range(SEARCHES):
            content = EXPERIMENT | {"seed": number, "cache": {"shared": str(folder / "shared")}}
            name = f"fire-{number}"
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
            self._start(name)

    def burn(self, kind: str) -> None:
        """Kills one of a kind, after a while."""
        time.sleep(self._chance.uniform(0.5, 3))
        if kind == "driver":
            name = self._chance.choice(
                [n for n, each in self._drivers.items() if each.is_running()]
            )
            self._drivers[name].send(signal.SIGKILL)
            self._drivers[name].wait()
            self._start(name)
        elif kind == "trial":
            self._kill_one([self._cluster.machines[0]], "ray::ImplicitFunc")
        elif kind == "delivery":
            self._kill_one([*self._drivers.values()], "search.tracking.delivery")
        else:
            stop_server(self._server)
            time.sleep(self._chance.uniform(0, 5))
            self._server = start_server(self.folder, self._port)

    def go_on(self) -> None:
        """Has searches that have come to their ends look for one trial more, where few others
        run."""
        ended = [name for name, driver in self._drivers.items() if not driver.is_running()]
        for name in ended[: max(0, BUSY - SEARCHES + len(ended))]:
            done = self._drivers[name].wait()
            assert done.returncode == 0, done.stdout + done.stderr
            self._start(name, "--more-trials", "1")

    def finish(self) -> None:
        """Waits for all searches, and has MLflow get what it missed of them."""
        for name, driver in self._drivers.items():
            done = driver.wait()
            assert done.returncode == 0, done.stdout + done.stderr
            self._start(name)
        for driver in self._drivers.values():
            done = driver.wait()
            assert done.returncode == 0, done.stdout + done.stderr
            assert "MLflow missed" not in done.stdout

    def close(self) -> None:
        for driver in self._drivers.values():
            driver.send(signal.SIGKILL)
        stop_server(self._server)
        self._cluster.close()

    def _start(self, name: str, *options: str) -> None:
        words = ["resume", name, *options]
        if name not in search_names(self.storage):
            uri = f"http://127.0.0.1:{self._port}"
            words = ["launch", f"{name}.yaml", "--name", name, "--tracking-uri", uri]
        self._drivers[name] = self._cluster.started(*words, "--address", self._cluster.address)

    def _kill_one(self, above: "Sequence[Command | subprocess.Popen[bytes]]", words: str) -> None:
        """Kills a process with these words in its command, below one of those; waits for one."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.go_on()
            if pids := [pid for one in above for pid in processes_below(one.pid, words)]:
                with suppress(ProcessLookupError):
                    os.kill(self._chance.choice(pids), signal.SIGKILL)
                    return
            time.sleep(0.2)
        raise TimeoutError(f"no process {words!r} in {PATIENCE:g} s")


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The team after all of the fire, when all its searches have come to their ends."""
    team = Team(tmp_path_factory.mktemp("team"))
    try:
        for kind in KINDS:
            team.go_on()
            team.burn(kind)
        team.finish()
        yield team
    finally:
        team.close()


def test_records_studies_and_runs_agree(team: Team) -> None:
    assert search_names(team.storage) == [f"fire-{number}" for number in range(SEARCHES)]
    for name in search_names(team.storage):
        record = read_record(team.storage, name)
        # One of them trains the teacher, the others find it.
        checks.nothing_was_lost(record, team.folder / "runs", teachers=(0, 1))


def test_cached_outputs_are_whole_and_the_same_everywhere(team: Team) -> None:
    images = len(open_data(DataConfig(**DATA), team.folder / "runs").train)
    files = {
        place: {file.relative_to(place): file for file in cached_files(place)}
        for place in (team.folder / "runs/teacher_cache", team.folder / "shared")
    }
    for found in files.values():
        assert found
        for file in found.values():
            read_outputs(file, file.parent.name.rpartition("-")[2], images)
    ours, shared = files.values()
    assert shared.keys() <= ours.keys()
    for name, file in shared.items():
        assert file.read_bytes() == ours[name].read_bytes()
