"""What leans on something that Ray does not promise; seen in Ray 2.60.

`tests/unit/search/test_ray_private.py` tells in words what has changed when it fails.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Tune asks these two what becomes of a trial whose process failed.
FAILURE_HANDLERS = ("_actor_task_failed", "_actor_start_failed")

# They tell of uploads and of closed sockets, beside a job's own words.
TALKATIVE_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@contextmanager
def outlasting_full_memory() -> Iterator[None]:
    """Makes Tune retry a trial that Ray ended because its machine ran out of memory.

    Tune retries a trial whose process died, but takes this error for one of its own and ends the
    search; no setting changes that.
    """

    from ray.air.execution._internal.actor_manager import RayActorManager  # Tune with it
    from ray.exceptions import OutOfMemoryError, RayActorError

    def told(usual: Callable[..., None]) -> Callable[..., None]:
        def tell(manager: Any, **arguments: Any) -> None:
            if isinstance(arguments["exception"], OutOfMemoryError):
                message = "the machine ran out of memory; with more resources.cpus fewer trials run"
                arguments["exception"] = RayActorError(error_msg=message)
            usual(manager, **arguments)

        return tell

    handlers: dict[str, Any] = {n: told(getattr(RayActorManager, n)) for n in FAILURE_HANDLERS}
    with patch.multiple(RayActorManager, **handlers):
        yield


def failures_of(trial: Any) -> tuple[int, str]:
    """How often a trial of Tune has failed, and the last traceback; empty where there is none.

    Callbacks are given the trial itself, but of its attributes only `config` and the like are
    documented.
    """
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    return trial.num_failures, text


def quieten_job_client() -> None:
    """Leaves of what the client of a job server writes to its log only what is wrong."""
    for name in TALKATIVE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
