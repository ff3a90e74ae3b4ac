"""What a failed trial's leaderboard row says."""

import pytest

from search.launch import reason_of

DIED = """ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tpid: 5990
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR
"""

RAISED = """Failure # 1 (occurred at 2026-11-22_01-21-28)
Traceback (most recent call last):
  File "event_manager.py", line 110, in resolve_future
ray.exceptions.RayTaskError(OSError): ray::ImplicitFunc.train() (pid=5990, ip=192.0.2.2)
  File "trial.py", line 50, in run_trial
OSError: [Errno 28] No space left on device: 'x'
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DIED, "The actor died unexpectedly before finishing this task."),
        (RAISED, "[Errno 28] No space left on device: 'x'"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "CUDA out of memory. Tried"),
        ("unknown", "unknown"),
    ],
)
def test_the_reason_is_the_error_itself(text: str, reason: str) -> None:
    assert reason_of(text) == reason
