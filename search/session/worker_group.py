"""The processes that train one student together: one in each bundle of a placement group.

The trial itself is the first of them, and so reports, checkpoints and is stopped and retried as any
other; the others are Ray tasks, that belong to it and end with it. Ray Train's TorchTrainer would
take a placement group of its own beside that of the trial, of which Tune knows nothing, with a
controller, checkpoints and retries of its own. The processes speak by `torch.distributed`.
"""

import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kdcore import TrialConfig, distill
from kdcore.execution.workers import Workers, joined, open_store, reach_store
from kdcore.networks.measurement import device_memory
from kdcore.training.evaluation import default_device
from search.experiment.schema import Resources
from search.record.networks import Executions
from search.record.storage import Storage, workspace_of
from search.session.preparation import fetch_teacher

# The others notice at once that one has ended; those that wait on a GPU may not.
_GRACE_SECONDS = 60.0
_LOOK_SECONDS = 5.0

# Linux: asks for the IPv4 address of a network interface.
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Work:
    """What each process of a trial does.

    Args:
        config: of the trial.
        storage_uri: where the teacher lies.
        parts: of each batch.
        executions: of the search; none: measured.
        cache_on_device: whether cached outputs may go to a GPU as a whole.
    """

    config: TrialConfig
    storage_uri: str
    parts: int
    executions: Executions | None
    cache_on_device: bool = True

    @property
    def has_cache_on_gpu(self) -> bool:
        """Whether cached outputs may take memory of a GPU, and so can be moved out of it."""
        reads = self.config.cache is not None and bool(self.config.objective)
        return self.cache_on_device and reads and device_memory(default_device()) is not None

    def arguments(self) -> dict[str, Any]:
        """Those of `kdcore.distill`, beside the configuration."""
        student = teacher = None
        if self.executions is not None:
            student = self.executions.students[self.config.student.label]
            teacher = self.executions.of_teacher(self.config.teacher.network)
        return {
            "workspace": workspace_of(Storage(self.storage_uri)),
            "parts": self.parts,
            "execution": student,
            "teacher_execution": teacher,
            "cache_on_device": self.cache_on_device,
        }


def bundles(resources: Resources) -> list[dict[str, float]]:
    """What Ray has to reserve for a trial: a bundle for each process."""
    return [{"CPU": resources.cpus, "GPU": resources.gpus}] * resources.workers


def in_bundle(group: PlacementGroup, number: int, resources: Resources) -> dict[str, Any]:
    """The options of a task that has all of a bundle."""
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "scheduling_strategy": place,
    }


@contextmanager
def worker_group(resources: Resources, work: Work) -> Iterator[Workers]:
    """Starts the other processes of this trial, and joins them until the end of the block.

    Args:
        resources: of the trial, in whose placement group this process has the first bundle.
        work: of all of them.

    Raises:
        RuntimeError: another process has failed; torch.OutOfMemoryError: for want of memory.
    """
    if resources.workers == 1:
        yield Workers()
        return
    group = get_current_placement_group()
    assert group is not None
    host = _own_address()
    _speak_from(host)
    store, port = open_store(host)
    along: Any = ray.remote(_work_along)
    others = [
        along.options(max_retries=0, **in_bundle(group, rank, resources)).remote(
            rank, resources, host, port, work
        )
        for rank in range(1, resources.workers)
    ]
    ended = threading.Event()
    threading.Thread(target=_watch, args=(others, ended), daemon=True).start()
    try:
        with joined(0, resources.workers, store, default_device()) as workers:
            yield workers
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of an exchange with one that has ended
        raise (_failure(others) or error) from error
    finally:
        ended.set()
        _, left = ray.wait(others, num_returns=len(others), timeout=_GRACE_SECONDS / 2)
        for other in left:
            ray.cancel(other, force=True)


def _work_along(rank: int, resources: Resources, host: str, port: int, work: Work) -> None:
    """What the processes after the first do."""
    torch.set_num_threads(resources.cpus)
    _speak_from(_own_address())
    storage, config = Storage(work.storage_uri), work.config
    if storage.local is None:
        fetch_teacher(config.data_of_teacher, config.teacher, storage, workspace_of(storage))
    device = default_device()
    with joined(rank, resources.workers, reach_store(host, port), device) as workers:
        for _ in distill(config, device=device, workers=workers, **work.arguments()):
            pass


def _failure(others: list[Any]) -> RuntimeError | None:
    """Why one of the other processes has failed; none if none has."""
    done, _ = ray.wait(others, num_returns=len(others), timeout=_LOOK_SECONDS)
    for other in done:
        try:
            ray.get(other)
        except RayError as error:
            cause = getattr(error, "cause", error)
            if isinstance(cause, torch.OutOfMemoryError):
                return torch.OutOfMemoryError(str(cause))
            if not isinstance(cause, RuntimeError):  # else it has lost us, as we have it
                return RuntimeError(f"another worker of the trial failed: {cause}")
    return None


def _watch(others: Sequence[Any], ended: threading.Event) -> None:
    """Ends this process, where it still waits for another long after that has failed."""
    left = list(others)
    while left and not ended.wait(_LOOK_SECONDS):
        done, left = ray.wait(left, num_returns=len(left), timeout=0)
        for other in done:
            try:
                ray.get(other)
            except RayError as error:
                if not ended.wait(_GRACE_SECONDS):
                    print(f"another worker of the trial failed: {error}", file=sys.stderr)
                    os._exit(1)


def _own_address() -> str:
    """This machine's, by which Ray's other machines reach it."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


def _speak_from(address: str) -> None:
    """Has gloo use the network interface with this address. By default it takes the address of
    the machine's name, which on Debian is one that no other machine reaches."""
    if sys.platform != "linux":
        return
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
