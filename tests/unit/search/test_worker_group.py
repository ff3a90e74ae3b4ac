"""The other processes of a trial, without Ray: how they are found, and what becomes of it when one
of them fails."""

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError, WorkerCrashedError

from kdcore.execution.workers import Workers
from search.experiment.schema import Resources
from search.session import worker_group
from search.session.worker_group import bundles


def failed(cause: Exception) -> RayTaskError:
    return RayTaskError("_work_along", "a traceback", cause)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How the other processes end, each a failure or none; all of them have ended."""
    found: list[Any] = []

    def get(number: int) -> None:
        if found[number] is not None:
            raise found[number]

    def wait(others: list[int], **how: Any) -> tuple[list[int], list[int]]:
        return others, []

    monkeypatch.setattr(worker_group, "ray", SimpleNamespace(get=get, wait=wait))
    return found


def test_the_reason_is_that_of_the_one_that_failed_first(ends: list[Any]) -> None:
    lost = failed(RuntimeError("Connection closed by peer"))
    ends[:] = [None, lost]
    assert worker_group._failure([0, 1]) is None, "it has lost this process"
    ends[:] = [lost, WorkerCrashedError()]
    assert "another worker failed: The worker died" in str(worker_group._failure([0, 1]))
    ends[:] = [failed(torch.OutOfMemoryError("CUDA out of memory")), lost]
    found = worker_group._failure([0, 1])
    assert isinstance(found, torch.OutOfMemoryError), "by which a trial goes on with halved batches"
    assert str(found) == "CUDA out of memory"
    ends[:] = [lost, failed(OSError("no space left"))]
    assert str(worker_group._failure([0, 1])) == "another worker failed: no space left"


@pytest.mark.parametrize("gets_away", [True, False])
def test_a_process_that_waits_for_one_that_has_failed_ends(
    gets_away: bool, ends: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends[:] = [None, WorkerCrashedError()]
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    ended = threading.Event()
    monkeypatch.setattr(worker_group, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(worker_group, "_GRACE_SECONDS", 60.0 if gets_away else 0.0)
    if gets_away:
        threading.Timer(0.2, ended.set).start()
    worker_group._watch([0, 1], ended)
    assert left == ([] if gets_away else [1])


def test_one_worker_needs_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(worker_group, "ray")
    with worker_group.worker_group(Resources(), pytest.fail) as workers:
        assert workers == Workers()
    assert bundles(Resources(cpus=2, gpus=1, workers=3)) == [{"CPU": 2, "GPU": 1.0}] * 3


def test_processes_speak_by_the_interface_that_others_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is forgotten afterwards
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    worker_group._speak_from("203.0.113.7")
    assert "GLOO_SOCKET_IFNAME" not in os.environ, "no interface of this machine has it"
    worker_group._speak_from("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
