"""What a search decides before its trials; and failed ones, which end no search."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from kdcore.execution.execution import Execution
from kdcore.networks.cost import NetworkCost
from search.cluster.ray_private import retrying_lost_processes
from search.experiment.schema import Resources
from search.record.live_record import LiveRecord
from search.record.networks import Executions
from search.record.record import SearchRecord
from search.session.recorder import reason_of
from search.session.session import Session
from search.session.teachers import _trained
from tests.synthetic import finished_search

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


def test_a_trial_that_ray_ended_for_want_of_memory_counts_as_one_that_died() -> None:
    told: list[Exception] = []
    actor = SimpleNamespace(
        actor_id="a", _on_error=lambda actor, error: told.append(error), _on_start=None
    )
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    error = OutOfMemoryError("pages of figures")
    with retrying_lost_processes():
        RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=error)
        RayActorManager._actor_start_failed(manager, tracked_actor=actor, exception=error)
    assert [type(each) for each in told] == [RayActorError] * 2
    assert all("the machine ran out of memory" in str(each) for each in told)
    with pytest.raises(RuntimeError, match="unexpected"):  # Ray's own way; else this can go
        RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=error)


MEASURED = Executions(students={"resnet8": Execution("bfloat16")}, teacher=Execution())
EARLIER = Executions(students={"resnet8": Execution("float16")}, teacher=Execution("float16"))
COST = NetworkCost(
    parameters=1, multiply_adds=1, latency_ms=1.0, batch_latency_ms=1.0, device="x", threads=1
)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, MEASURED),  # a search that begins
        ({"student_costs": {"resnet8": COST}}, MEASURED),  # an old one, resumed
        ({"student_costs": {"resnet8": replace(COST, latency_ms=2.0)}}, MEASURED),  # constrained
        ({"executions": EARLIER}, EARLIER),
        ({"student_costs": {"resnet8": COST}, "executions": EARLIER}, EARLIER),
    ],
)
def test_precision_and_layout_are_decided_once_for_a_search(
    known: dict[str, Any], expected: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(function: object) -> SimpleNamespace:
        started = SimpleNamespace(remote=lambda *arguments: ({"resnet8": COST}, MEASURED))
        return SimpleNamespace(options=lambda **resources: started)

    monkeypatch.setattr(
        "search.session.session.ray", SimpleNamespace(remote=task, get=lambda answer: answer)
    )
    record: SearchRecord = finished_search([], **known)
    session: Any = SimpleNamespace(
        _plan=SimpleNamespace(experiment=record.experiment),
        _search=LiveRecord(record),
        _storage=SimpleNamespace(uri="x"),
    )
    Session._measure_students(session)
    assert session._search.head.executions == expected
    assert session._search.head.student_costs == {"resnet8": COST, **record.student_costs}


@pytest.mark.parametrize(
    ("resources", "taken"),
    [
        (Resources(cpus=1, gpus=0), (64, 0)),
        (Resources(cpus=2, gpus=0.125), (16, 1)),
        (Resources(cpus=2, gpus=2), (8, 2)),
        (Resources(cpus=2, gpus=4), (2, 4)),  # a cluster that is to grow
    ],
)
def test_a_teacher_trains_alone_on_a_whole_gpu_and_all_cores_beside_it(
    resources: Resources, taken: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float]] = []

    def task(function: object) -> SimpleNamespace:
        def options(num_cpus: int, num_gpus: float, num_returns: str) -> SimpleNamespace:
            asked.append((num_cpus, num_gpus))
            return SimpleNamespace(remote=lambda *arguments: [])

        return SimpleNamespace(options=options)

    there = ({"CPU": 64.0}, {"CPU": 16.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0})
    nodes = [{"Alive": True, "Resources": has} for has in there]
    monkeypatch.setattr("search.session.teachers.ray", SimpleNamespace(remote=task))
    monkeypatch.setattr("search.cluster.machines.ray.nodes", lambda: nodes)
    experiment = finished_search([]).experiment.model_copy(update={"resources": resources})
    prepared: Any = SimpleNamespace(experiment=experiment)
    storage: Any = SimpleNamespace(uri="x")
    nobody: Any = None
    assert _trained(prepared, "resnet20", nobody, storage, nobody) == []
    assert asked == [taken]
