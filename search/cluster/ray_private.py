"""TODO-DOC"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError


@contextmanager
def outlasting_full_memory() -> Iterator[None]:
    """Lets Tune take a trial that Ray ended, because its machine ran out of memory, for one whose
    process died, and try it again. By itself it would end the search."""

    def told(usual: Callable[..., None]) -> Callable[..., None]:
        def tell(manager: RayActorManager, **arguments: Any) -> None:
            if isinstance(arguments["exception"], OutOfMemoryError):
                message = "the machine ran out of memory; with more resources.cpus fewer trials run"
                arguments["exception"] = RayActorError(error_msg=message)
            usual(manager, **arguments)

        return tell

    names = ("_actor_task_failed", "_actor_start_failed")
    handlers: dict[str, Any] = {name: told(getattr(RayActorManager, name)) for name in names}
    with patch.multiple(RayActorManager, **handlers):
        yield
