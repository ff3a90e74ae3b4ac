"""Clusters that `ray up` has started: which machines come by themselves, and waiting for them.

`ray up` returns minutes before the first worker is there. With `min_workers: 0` none comes before
something waits for it. What may come stands in the cluster's file, which Ray's autoscaler reads.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import yaml
from ray.exceptions import GetTimeoutError

from search.cluster.machines import machines, places_on
from search.cluster.ray_private import cluster_file, is_head
from search.errors import ClusterError
from search.experiment.schema import Resources
from search.record.wording import duration

# A machine that installs PyTorch takes minutes, and one at a spot price may have to be waited for.
_FIRST_SECONDS = 1200.0
# Machines that are started together come within so much of each other; a dead one does not.
_NEXT_SECONDS = 180.0
_LOOK_SECONDS = 2.0

# Where the autoscaler says what it does, and what keeps it from it.
_WHY = "ray monitor CLUSTER.yaml says why"


@dataclass(frozen=True)
class Kind:
    """A type of machine that a cluster starts.

    Args:
        resources: of one, as Ray names them; empty where they are known only when one is there.
        fewest: number that are always there, or on their way.
        most: number of them.
    """

    resources: dict[str, float]
    fewest: int
    most: int


@dataclass(frozen=True)
class Growth:
    """What a cluster starts by itself.

    Args:
        kinds: of machines.
        most: number of machines beside the head.
    """

    kinds: tuple[Kind, ...]
    most: int

    @property
    def fewest(self) -> int:
        """Number of machines beside the head that come without being asked for."""
        return min(self.most, sum(kind.fewest for kind in self.kinds))

    def __str__(self) -> str:
        """What it means where no trial fits on the machines that are there."""
        if all(kind.resources for kind in self.kinds if kind.most):
            return "the cluster starts none that holds one"
        return "what else the cluster starts is known once it is there"

    @property
    def has_gpus(self) -> bool:
        return any(kind.most and kind.resources.get("GPU", 0) >= 1 for kind in self.kinds)

    def places(self, resources: Resources) -> int:
        """Number of trials that would run at a time on all machines whose resources are known."""
        places, left = 0, self.most
        # Of one worker of a trial each; most trials have one.
        holding = [(places_on(kind.resources, resources), kind.most) for kind in self.kinds]
        for each, most in sorted(holding, reverse=True):
            places += each * min(most, left)
            left -= min(most, left)
        return places // resources.workers


def growth() -> Growth | None:
    """What the connected cluster starts by itself; none where it starts nothing, or where only
    its head knows."""
    file = cluster_file()
    return None if file is None else _growth(yaml.safe_load(file.read_text()))


def _growth(config: dict[str, Any]) -> Growth:
    """Of a cluster's file with Ray's defaults, as its head has it."""
    most = int(config["max_workers"])
    kinds = tuple(
        Kind(kind.get("resources", {}), kind.get("min_workers", 0), kind.get("max_workers", most))
        for kind in config["available_node_types"].values()
    )
    return Growth(kinds, most)


def await_machines(resources: Resources, say: Callable[[str], None]) -> None:
    """Waits for the machines of a cluster that starts them by itself: for those that are always
    there, and for the first one that has room for a trial, which it asks for.

    Args:
        resources: of a trial; where they are left to the cluster, its GPUs come first.
        say: is told what is waited for.

    Raises:
        ClusterError: none came in time.
    """
    grown = growth()
    if grown is None:
        return
    if _workers() < grown.fewest:
        _await_always_there(grown.fewest, say)
    gpus = resources.gpus if resources.is_decided or not grown.has_gpus else 1.0
    wanted = Resources(cpus=resources.cpus, gpus=gpus)
    if any(places_on(machine["Resources"], wanted) for machine in machines()):
        return
    if grown.places(wanted):
        _await_first(wanted, say)


def _await_always_there(number: int, say: Callable[[str], None]) -> None:
    there = _workers()
    say(f"waiting for the cluster's machines, of which {there} of {number} are there")
    deadline = time.monotonic() + (_NEXT_SECONDS if there else _FIRST_SECONDS)
    while there < number and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        before, there = there, _workers()
        if there > before:
            deadline = time.monotonic() + _NEXT_SECONDS
    if there == 0:
        raise ClusterError(
            f"none of the cluster's {number} machines came within "
            f"{duration(_FIRST_SECONDS)}; {_WHY}"
        )
    if there < number:
        say(f"{there} of {number} machines are there, and no other has come; {_WHY}")


def _await_first(wanted: Resources, say: Callable[[str], None]) -> None:
    end = duration(_FIRST_SECONDS)
    say(f"waiting for the first machine, which the cluster starts now; {end} at most")
    asked = ray.remote(_there).options(num_cpus=wanted.cpus, num_gpus=wanted.gpus).remote()
    try:
        ray.get(asked, timeout=_FIRST_SECONDS)
    except GetTimeoutError:
        ray.cancel(asked)
        raise ClusterError(f"no machine came within {end}; {_WHY}") from None


def _workers() -> int:
    """Number of machines that are there, beside the head."""
    return sum(not is_head(machine) for machine in machines())


def _there() -> None:
    """Runs as soon as there is a machine."""
