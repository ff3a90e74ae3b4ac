"""Clusters that start their machines by themselves: what may come, and waiting for it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.exceptions import GetTimeoutError

from search.cluster import connection, growth
from search.cluster.connection import places_for_trials
from search.cluster.growth import Growth, Kind, await_machines
from search.errors import ClusterError
from search.experiment.schema import Experiment, Resources
from search.record.storage import Storage
from tests.cases import Case
from tests.synthetic import finished_search

HEAD = {"Alive": True, "NodeID": "head", "Resources": {"node:__internal_head__": 1.0}}
WORKER = {"Alive": True, "NodeID": "worker", "Resources": {"CPU": 4.0, "GPU": 1.0}}


def needing(resources: dict[str, float], at_a_time: int | None = None) -> Experiment:
    """An experiment whose trials need so much."""
    search = {"trials": 4, "concurrent_trials": at_a_time}
    return finished_search([], {"resources": resources, "search": search}).experiment


def of_file(name: str) -> Growth:
    """What the head of a cluster with this file knows."""
    return growth._growth(prepare_config(yaml.safe_load(Path(name).read_text())))


def test_the_files_say_what_may_come() -> None:
    aws, own = of_file("cluster.yaml"), of_file("experiments/clusters/on_premises.yaml")
    assert (aws.fewest, aws.has_gpus) == (0, True)
    assert (own.fewest, own.has_gpus) == (2, False)
    for resources, places in (
        (Resources(cpus=1, gpus=0), 32),
        (Resources(cpus=1, gpus=0.5), 16),
        (Resources(cpus=2, gpus=1), 8),
        (Resources(cpus=2, gpus=1, workers=3), 2),
        (Resources(cpus=8, gpus=0), 0),
        (Resources(cpus=1, gpus=2), 0),
    ):
        with Case(resources):
            assert aws.places(resources) == places
            assert own.places(resources) == 0  # nobody knows before they are there


def test_all_machines_together_are_limited_too() -> None:
    small, large = Kind({"CPU": 2.0}, 0, 10), Kind({"CPU": 16.0}, 1, 2)
    assert Growth((small, large), 5).places(Resources(cpus=2)) == 2 * 8 + 3
    assert Growth((small, large), 1).places(Resources(cpus=2)) == 8
    assert Growth((small, large), 0).fewest == 0


class Cluster:
    """A cluster whose machines come when the clock says so.

    Args:
        grown: what it may start.
        coming: when the next machines are there, in seconds from now.
    """

    def __init__(self, patch: pytest.MonkeyPatch, grown: Growth | None, *coming: float) -> None:
        self.now, self.coming, self.said = 0.0, list(coming), list[str]()
        self.asked: dict[str, float] = {}
        patch.setattr(growth, "growth", lambda: grown)
        patch.setattr(connection, "growth", lambda: grown)
        patch.setattr(connection, "machines_without_storage", lambda storage: [])
        patch.setattr("search.cluster.machines.ray.nodes", self.nodes)
        patch.setattr(growth, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))
        asking = SimpleNamespace(remote=lambda: "asked")
        fake = SimpleNamespace(
            remote=lambda task: SimpleNamespace(options=lambda **needs: self.ask(needs, asking)),
            get=self.get,
            cancel=lambda asked: self.said.append("cancelled"),
        )
        patch.setattr(growth, "ray", fake)

    def nodes(self) -> list[dict[str, Any]]:
        return [HEAD, *(WORKER for moment in self.coming if moment <= self.now)]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, needs: dict[str, float], asking: Any) -> Any:
        self.asked = needs
        return asking

    def get(self, asked: str, timeout: float) -> None:
        if not any(moment <= self.now + timeout for moment in self.coming):
            raise GetTimeoutError
        self.now = min(self.coming)

    def wait(self, resources: Resources) -> None:
        await_machines(resources, self.said.append)


Clusters = Callable[..., Cluster]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Clusters:
    return lambda grown, *coming: Cluster(monkeypatch, grown, *coming)


FIXED = Growth((Kind({}, 2, 2),), 2)
ON_DEMAND = Growth((Kind({"CPU": 0.0}, 0, 0), Kind({"CPU": 4.0, "GPU": 1.0}, 0, 8)), 8)


def test_machines_that_are_on_their_way_are_waited_for(start: Clusters) -> None:
    cluster = start(FIXED, 100, 250)
    cluster.wait(Resources())
    assert 250 <= cluster.now < 260
    assert cluster.said == ["waiting for the cluster's machines, of which 0 of 2 are there"]
    cluster.wait(Resources())
    assert len(cluster.said) == 1, "all are there"


def test_the_wait_for_a_machine_has_an_end(start: Clusters) -> None:
    cluster = start(FIXED, 100)
    cluster.wait(Resources())
    assert 280 <= cluster.now < 290
    assert cluster.said[1:] == [
        "1 of 2 machines are there, and no other has come; ray monitor CLUSTER.yaml says why"
    ]
    with pytest.raises(ClusterError, match=r"none of the cluster's 2 machines came within 20 min"):
        start(FIXED).wait(Resources())


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        (Resources(), {"num_cpus": 1, "num_gpus": 1.0}),  # decided where trials could have a GPU
        (Resources(cpus=2, gpus=0), {"num_cpus": 2, "num_gpus": 0.0}),
        (Resources(cpus=2, gpus=0.5), {"num_cpus": 2, "num_gpus": 0.5}),
    ],
    ids=str,
)
def test_a_cluster_without_machines_is_asked_for_one(
    resources: Resources, asked: dict[str, float], start: Clusters
) -> None:
    cluster = start(ON_DEMAND, 300)
    cluster.wait(resources)
    assert cluster.asked == asked
    assert cluster.said == [
        "waiting for the first machine, which the cluster starts now; 20 min at most"
    ]
    nowhere = start(ON_DEMAND)
    with pytest.raises(ClusterError, match=r"no machine came within 20 min; ray monitor"):
        nowhere.wait(resources)
    assert nowhere.said[-1] == "cancelled"


def test_nothing_is_waited_for_that_cannot_come(start: Clusters, tmp_path: Path) -> None:
    for grown, words in (
        (None, "one with 0 CPUs and 0 GPUs; "),
        (ON_DEMAND, "0 GPUs, and the cluster starts none that holds one"),
        (Growth((Kind({}, 0, 2),), 2), "what else the cluster starts is known once it is there"),
    ):
        cluster = start(grown)
        cluster.wait(Resources(cpus=99, gpus=0))
        assert not cluster.said
        asking = needing({"cpus": 99, "gpus": 0})
        with pytest.raises(ClusterError, match=f"a trial needs 99 CPUs .*{words}.* will grow"):
            places_for_trials(asking, Storage(str(tmp_path)))


def test_as_many_trials_run_as_all_machines_hold_that_may_come(
    start: Clusters, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    asking = needing({"cpus": 1, "gpus": 0.5})
    start(ON_DEMAND, 0)
    assert places_for_trials(asking, storage) == 16
    start(FIXED, 0)
    assert places_for_trials(asking, storage) == 2
    start(None, 0)
    assert places_for_trials(asking, storage) == 2
    fewer = needing({"cpus": 1, "gpus": 0.5}, 3)
    start(ON_DEMAND, 0)
    assert places_for_trials(fewer, storage) == 3
