"""The processes that train one network together: one in each bundle of a placement group.

A trial itself is the first of them, and so reports, checkpoints and is stopped and retried as any
other; the others are Ray tasks, that belong to it and end with it. Ray Train's TorchTrainer would
take a placement group of its own beside that of the trial, of which Tune knows nothing, with a
controller, checkpoints and retries of its own. The processes speak by `torch.distributed`.
"""

import os
import pickle
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kdcore.contract import plugged
from kdcore.contract.plugin import Plugin
from kdcore.contract.plugin_faults import ending_hangs
from kdcore.execution.workers import Workers, joined, open_store, reach_store
from kdcore.training.evaluation import default_device
from search.experiment.schema import Resources

# The others notice at once that one has ended; those that wait on a GPU may not.
_GRACE_SECONDS = 60.0
_LOOK_SECONDS = 5.0

# Linux: asks for the IPv4 address of a network interface.
_SIOCGIFADDR = 0x8915


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
def worker_group(
    resources: Resources, help_along: Callable[..., None], *arguments: Any
) -> Iterator[Workers]:
    """Starts the other processes of this one, and joins them until the end of the block.

    Args:
        resources: of all of them; this process has the first bundle of their placement group.
        help_along: what the others do, which gets them as the first argument.
        arguments: the other ones.

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
    # In bytes: what of it is of plugins can be read where these are in use.
    work = pickle.dumps((help_along, arguments))
    others = [
        along.options(max_retries=0, **in_bundle(group, rank, resources)).remote(
            rank, resources, host, port, plugged.in_use(), work
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


def _work_along(
    rank: int,
    resources: Resources,
    host: str,
    port: int,
    plugins: tuple[Plugin, ...],
    work: bytes,
) -> None:
    """What the processes after the first do."""
    with ending_hangs():
        plugged.use(plugins)
        help_along, arguments = pickle.loads(work)
        torch.set_num_threads(resources.cpus)
        _speak_from(_own_address())
        store = reach_store(host, port)
        with joined(rank, resources.workers, store, default_device()) as workers:
            help_along(workers, *arguments)


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
                return RuntimeError(f"another worker failed: {cause}")
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
                    print(f"another worker failed: {error}", file=sys.stderr)
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
