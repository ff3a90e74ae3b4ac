"""What leans on something that Ray does not promise; seen in Ray 2.60.

`tests/unit/search/test_ray_private.py` tells in words what has changed when it fails.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

# What Tune asks about a failure, and what it forgets to note of it.
PROCESS_FAILURE, RESETTING = "_process_trial_failure", "_resetting_trials"

# What a process asks of the node that it starts, until it is there.
NODE = "get_node"

# Tune asks these two what becomes of a trial whose process failed.
FAILURE_HANDLERS = ("_actor_task_failed", "_actor_start_failed")

# Where the dashboard's own pages learn of the machines.
NODES = "/nodes?view=summary"

# How Ray starts its autoscaler: for which cluster, and with which file.
CLUSTER_OPTION, FILE_OPTION = "--gcs-address=", "--autoscaling-config="

# The resource that Ray gives to the head of a cluster.
HEAD = "node:__internal_head__"

# They tell of uploads and of closed sockets, beside a job's own words.
TALKATIVE_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """Makes Ray wait for its own processes for so long. It gives them half a minute, fixed, which
    is too little where others keep all cores busy."""
    from ray._private import services

    ask = getattr(services, NODE)

    def patiently(*arguments: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    with patch.object(services, NODE, patiently):
        yield


@contextmanager
def retrying_lost_processes() -> Iterator[None]:
    """Makes Tune retry a trial whose process died, in two cases in which it would not.

    Where a machine ran out of memory, Tune takes Ray's error for one of its own and ends the
    search. Where the process died in which a trial was to take over that of an earlier one, Tune
    tells of it twice, takes the second time for final, and would also wait for the dead process
    again. No setting changes either.
    """

    from ray.air.execution._internal.actor_manager import RayActorManager  # Tune with it
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.tune.execution.tune_controller import TuneController

    process_failure = getattr(TuneController, PROCESS_FAILURE)
    last: dict[str, Exception] = {}  # by trial

    def processed_once(controller: Any, trial: Any, exception: Exception) -> None:
        getattr(controller, RESETTING).discard(trial)
        if last.get(trial.trial_id) is not exception:
            last[trial.trial_id] = exception
            process_failure(controller, trial, exception)

    def told(usual: Callable[..., None]) -> Callable[..., None]:
        def tell(manager: Any, **arguments: Any) -> None:
            if isinstance(arguments["exception"], OutOfMemoryError):
                message = "the machine ran out of memory; with more resources.cpus fewer trials run"
                arguments["exception"] = RayActorError(error_msg=message)
            usual(manager, **arguments)

        return tell

    handlers: dict[str, Any] = {n: told(getattr(RayActorManager, n)) for n in FAILURE_HANDLERS}
    with (
        patch.multiple(RayActorManager, **handlers),
        patch.object(TuneController, PROCESS_FAILURE, processed_once),
    ):
        yield


def failures_of(trial: Any) -> tuple[int, str]:
    """How often a trial of Tune has failed, and the last traceback; empty where there is none.

    Callbacks are given the trial itself, but of its attributes only `config` and the like are
    documented.
    """
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    return trial.num_failures, text


def is_head(machine: dict[str, Any]) -> bool:
    """Whether this is a cluster's head, of what `ray.nodes` says."""
    return HEAD in machine["Resources"]


def cluster_file() -> Path | None:
    """The file by which the connected cluster starts and ends its machines: that of `ray up`, with
    Ray's defaults. None where its autoscaler has none or runs on another machine.

    Ray's status says what is being started now, and each of its two autoscalers says that in
    another place; none says what may come.
    """
    import psutil
    import ray

    cluster = CLUSTER_OPTION + ray.get_runtime_context().gcs_address
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        files = [word for word in command if word.startswith(FILE_OPTION)]
        if cluster in command and files:
            return Path(files[0].removeprefix(FILE_OPTION)).expanduser()
    return None


def quieten_job_client() -> None:
    """Leaves of what the client of a job server writes to its log only what is wrong."""
    for name in TALKATIVE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def dashboard_nodes(client: Any) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What the dashboard shows of a cluster's machines, which only its own pages are to ask for.

    Args:
        client: of its job server.

    Returns:
        A description of each machine, and by a machine's id what is occupied of its resources, one
        each line; empty where the dashboard does not tell.
    """
    answer = client._do_request("GET", NODES)
    if answer.status_code != 200:
        return [], {}
    data = answer.json().get("data", {})
    return data.get("summary", []), data.get("nodeLogicalResources", {})
