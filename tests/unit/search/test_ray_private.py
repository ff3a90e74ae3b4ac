"""Canaries: what Ray does not promise, and the search leans on."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private import node, services
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.dashboard.modules.node import node_head
from ray.dashboard.modules.reporter import gpu_providers, reporter_agent
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from search.cluster import ray_private


def test_tunes_actor_manager_still_has_the_handlers_that_decide_about_a_failure() -> None:
    manager = RayActorManager
    for name in ray_private.FAILURE_HANDLERS:
        handler = getattr(manager, name, None)
        assert handler is not None, (
            f"Ray has no {manager.__module__}.RayActorManager.{name} any more: look for what calls "
            "on_error of a tracked actor, or whether Tune retries after OutOfMemoryError by itself"
        )
        assert "exception" in inspect.signature(handler).parameters, (
            f"{name} is no longer told the exception by this name"
        )


def test_tunes_controller_still_treats_a_failure_in_one_place() -> None:
    process = getattr(TuneController, ray_private.PROCESS_FAILURE, None)
    assert process is not None, "Tune treats a trial's failure elsewhere now: look for on_error"
    assert list(inspect.signature(process).parameters) == ["self", "trial", "exception"]
    source = inspect.getsource(TuneController)
    assert f"self.{ray_private.RESETTING}.add(trial)" in source, (
        "Tune notes in another way which trials take over a process"
    )


def test_a_machine_out_of_memory_is_still_no_death_of_an_actor_to_ray() -> None:
    assert issubclass(OutOfMemoryError, RayError)
    assert not issubclass(OutOfMemoryError, RayActorError), (
        "Tune now retries after OutOfMemoryError by itself: retrying_lost_processes can go"
    )


def test_a_trial_still_knows_its_failures() -> None:
    for name in ("error_file", "num_failures"):
        assert isinstance(getattr(Trial, name, None), property), (
            f"Tune's Trial has no {name} any more: it tells its failures in another way"
        )


def test_rays_autoscaler_is_still_started_with_the_clusters_file() -> None:
    source = inspect.getsource(services.start_monitor)
    for option in (ray_private.CLUSTER_OPTION, ray_private.FILE_OPTION):
        assert f'"{option}' in source, "what the cluster may start is to be found elsewhere now"
    assert ray_private.HEAD == HEAD_NODE_RESOURCE_NAME
    assert ray_private.is_head({"Resources": {HEAD_NODE_RESOURCE_NAME: 1.0}})
    assert not ray_private.is_head({"Resources": {"CPU": 1.0, "node:10.0.0.1": 1.0}})


def test_the_file_is_that_of_the_connected_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    for address, options, found in (
        ("10.0.0.1:6379", ["--autoscaling-config=~/cluster.yaml"], Path.home() / "cluster.yaml"),
        ("10.0.0.1:6379", [], None),  # started by hand
        ("10.0.0.1:6380", ["--autoscaling-config=~/cluster.yaml"], None),
    ):
        with subprocess.Popen(
            [sys.executable, "-c", "input()", f"--gcs-address={address}", *options],
            stdin=subprocess.PIPE,
        ) as monitor:
            assert ray_private.cluster_file() == found
            monitor.communicate(b"\n")


def test_the_loggers_that_are_made_quiet_still_exist() -> None:
    for name in ray_private.TALKATIVE_LOGGERS:
        assert importlib.util.find_spec(name), f"{name} has moved: `kdsearch submit` talks again"


def test_ray_still_gives_its_node_half_a_minute() -> None:
    source = inspect.getsource(node)
    assert f"ray._private.services.{ray_private.NODE}(" in source, (
        "Ray waits for its node in another way: patient_start is without effect"
    )
    assert "raylet_start_wait_time_s = 30" in source, (
        "Ray's time for its node has changed: perhaps patient_start can go"
    )


def test_the_dashboard_still_tells_of_machines() -> None:
    source = inspect.getsource(node_head)
    path, _, view = ray_private.NODES.partition("?view=")
    assert f'@routes.get("{path}")' in source
    assert f'view == "{view}"' in source
    assert "node_logical_resources=" in source, "it tells in another way what trials occupy"
    described = inspect.getsource(reporter_agent)
    for key in ("hostname", "cpus", "mem", "loadAvg", "gpus"):
        assert f'"{key}": ' in described, f"`kdsearch status` does not find {key} of a machine"
    assert {
        "utilization_gpu",
        "memory_used",
        "memory_total",
    } <= gpu_providers.GpuUtilizationInfo.__annotations__.keys()
