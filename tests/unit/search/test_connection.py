"""What a cluster has for trials, asked of machines as Ray describes them, and starting Ray."""

import platform
import socket
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import services
from ray._private.utils import check_version_info

from search.cluster import machines
from search.cluster.connection import connect
from search.cluster.ray_private import patient_start
from search.errors import ClusterError
from search.experiment.schema import Resources
from search.record.storage import Storage


def machine(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus, "GPU": gpus, "memory": 1e9}
    return {
        "Alive": alive,
        "Resources": {key: value for key, value in resources.items() if value},
    }


@pytest.mark.parametrize(
    ("there", "needs", "places"),
    [
        ([machine(4), machine(3)], Resources(cpus=2), 3),
        ([machine(1)] * 4, Resources(cpus=2), 0),  # a trial runs on one machine
        ([machine(8, alive=False), machine(1)], Resources(cpus=1), 1),
        ([machine(16, 1)], Resources(cpus=2, gpus=0.25), 4),
        ([machine(4, 1)], Resources(cpus=2, gpus=0.25), 2),
        ([machine(64), machine(0, 4)], Resources(cpus=1, gpus=1), 0),
        ([], Resources(), 0),
        # Each worker of a trial runs on one machine.
        ([machine(4), machine(3)], Resources(cpus=2, gpus=0, workers=2), 1),
        ([machine(1)] * 5, Resources(gpus=0, workers=2), 2),
        ([machine(8, 2), machine(8, 1)], Resources(gpus=1, workers=3), 1),
        ([machine(8, 2), machine(8, 1)], Resources(gpus=1, workers=4), 0),
    ],
)
def test_trials_fit_on_single_machines(
    there: list[dict[str, Any]],
    needs: Resources,
    places: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machines.ray, "nodes", lambda: there)
    assert machines.trial_places(needs) == places


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [machine(4), machine(8, 2), machine(8, 8), machine(8, 8, alive=False)]
    monkeypatch.setattr(machines.ray, "nodes", lambda: there)
    assert machines.gpus() == 10


def test_a_look_at_the_machines_that_fails_leaves_nothing_in_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(machines.ray, "nodes", cut_off)
    with pytest.raises(KeyboardInterrupt):
        machines.machines_without_storage(Storage(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_look_at_the_machines_leaves_nothing_in_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines.ray, "nodes", list)
    assert machines.machines_without_storage(Storage(str(tmp_path))) == []
    assert list(tmp_path.iterdir()) == []


def test_machines_are_counted_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [machine(4), machine(8, 2), machine(8, 2)]
    monkeypatch.setattr(machines.ray, "nodes", lambda: there)
    words = "one with 4 CPUs and 0 GPUs; 2 machines with 8 CPUs and 2 GPUs"
    assert machines.machines_in_words() == words


def test_ray_may_be_slow_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself asks for its node until half a minute is over."""
    asked: list[str] = []

    def get_node(address: str) -> str:
        asked.append(address)
        if len(asked) < 4:
            raise RuntimeError("no node yet")
        return "node"

    monkeypatch.setattr(services, "get_node", get_node)
    with patient_start(60):
        assert services.get_node("here") == "node"
    assert len(asked) == 4
    assert services.get_node is get_node
    asked.clear()
    with patient_start(0), pytest.raises(RuntimeError, match="no node yet"):
        services.get_node("here")


def test_other_versions_are_all_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        check_version_info({"ray_version": "2.59.1", "python_version": "3.12.4"}, "10.0.0.5")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(socket, "create_connection", lambda *arguments, **options: socket.socket())
    with pytest.raises(ClusterError) as raised:
        connect("10.0.0.1:6379", Path("ray.log"))
    message = str(raised.value)
    for part in (
        *("The cluster was started with: Ray: 2.59.1 Python: 3.12.4", f"Ray: {ray.__version__}"),
        *(f"Python: {platform.python_version()}", "kdsearch submit", "\n"),
    ):
        assert (part in message) == (part != "\n"), part


def test_a_machine_that_is_too_busy_for_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could be the load.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match=r"no Ray at this machine: The current node timed out"):
        connect(None, Path("ray.log"))
