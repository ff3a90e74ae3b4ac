"""Connecting to Ray, on this machine or to a cluster."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from search import environment
from search.cluster.console_log import output_to
from search.cluster.growth import growth
from search.cluster.machines import (
    machine_types,
    machines,
    machines_in_words,
    machines_without_storage,
    trial_places,
)
from search.cluster.ray_private import patient_start
from search.errors import ClusterError
from search.experiment.schema import Experiment
from search.record.storage import Storage, local_home
from search.record.wording import as_typed

# At a load of 20 on two cores Ray's processes take more than a minute to start.
_START_SECONDS = 300.0


def connect(address: str | None, log: Path) -> None:
    """Starts Ray on this machine, or connects to a cluster.

    Args:
        address: of the cluster; none: Ray is started here.
        log: where Ray's output goes, for messages.

    Raises:
        ClusterError: Ray does not start, or nobody answers there.
    """
    try:
        if address is None:
            _start()
        else:
            host, colon, port = address.removeprefix("ray://").rpartition(":")
            if colon and port.isdigit():
                # Ray itself knocks at a closed port for minutes, without a word.
                socket.create_connection((host, int(port)), timeout=10).close()
            runtime = {"env_vars": environment.of_workers()}
            ray.init(address=address, log_to_driver=False, runtime_env=runtime)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        if "Version mismatch" in reason:
            reason += (
                "; install these versions here, or let the cluster's own run the search by "
                "kdsearch submit"
            )
        raise ClusterError(
            f"no Ray at {address or 'this machine'}: {reason}; see {as_typed(log)}"
        ) from None


def _start() -> None:
    """Starts Ray on this machine.

    Raises:
        RuntimeError: its processes were not ready in time.
    """
    try:
        with patient_start(_START_SECONDS):
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
    except Exception as error:
        if type(error) is not Exception:  # that is all that Ray raises then
            raise
        raise RuntimeError(str(error)) from None


def places_for_trials(experiment: Experiment, storage: Storage) -> int:
    """How many trials run at a time: what was asked for, else what the cluster holds now, or with
    all machines that it may start.

    Raises:
        ClusterError: the cluster has no room for one trial, or a machine does not see the
            storage.
    """
    resources, asked = experiment.resources, experiment.search.concurrent_trials
    grown = growth() if asked is None else None
    places = max(trial_places(resources), grown.places(resources) if grown else 0)
    if places == 0 and asked is None:
        workers = f"{resources.workers} times " if resources.workers > 1 else ""
        there = machines_in_words()
        if grown is not None:
            there += f", and {grown}"
        raise ClusterError(
            f"a trial needs {workers}{resources.cpus} CPUs and {resources.gpus:g} GPUs on one "
            f"machine, but there is {there}; change resources (auto goes by what is "
            f"there), or set search.concurrent_trials if the cluster will grow"
        )
    if len(machines()) > 1 and (found := machines_without_storage(storage)):
        raise ClusterError(
            f"{storage.uri} is not shared by all machines ({'; '.join(found)}); give --storage a "
            f"folder that all of them mount, or a bucket like s3://bucket/folder"
        )
    return asked or places


def check_prices(experiment: Experiment) -> None:
    """Refuses machines that have no price, where trials are paid by machines.

    Raises:
        ClusterError: one has none.
    """
    priced = experiment.prices.machine_hour if experiment.prices else {}
    if priced and (unpriced := sorted(set(machine_types()) - priced.keys())):
        raise ClusterError(
            f"prices.machine_hour has no price for machines of type "
            f"{', '.join(map(repr, unpriced))} (Ray's label ray.io/node-group), which are there; "
            f"add one (0: they do not count), or give gpu_hour or cpu_hour instead"
        )


@contextmanager
def connected_to_check(storage: Storage, address: str | None) -> Iterator[None]:
    """Connects to a cluster, or starts Ray on this machine, until the end of the block, in which
    nothing is printed.

    Raises:
        ClusterError: there is no Ray.
    """
    log = local_home(storage) / "logs" / "check.log"
    with output_to(log):
        connect(address, log)
        try:
            yield
        finally:
            ray.shutdown()
