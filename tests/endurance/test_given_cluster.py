"""On a cluster that others have started: who sees which GPU, and what it cannot do."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.endurance.test_reused_processes import GPUS, SEEN
from tests.integration.commands import succeeded
from tests.integration.ray_cluster import RayCluster
from tests.integration.test_clusters import EXPERIMENT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    cluster = RayCluster(tmp_path_factory.mktemp("cluster"), head_cpus=1, head_gpus=8)
    yield cluster
    cluster.close()


def test_a_process_without_a_share_of_a_gpu_sees_none_of_a_clusters(cluster: RayCluster) -> None:
    (cluster.folder / "start.py").write_text(GPUS)
    variables = {"HOME": str(cluster.folder / "home"), "RAY_AUTH_MODE": "token"}
    said = succeeded(cluster.folder, "start.py", cluster.address, **variables)
    assert json.loads(said.splitlines()[-1]) == SEEN


@pytest.mark.skipif(
    os.getuid() != 0, reason="only root can hide a folder from a machine; run as root"
)
def test_what_a_cluster_cannot_do_is_found_before_anything_is_trained(
    cluster: RayCluster, tmp_path: Path
) -> None:
    (cluster.folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    stranger = cluster.add_machine(without=tmp_path)
    place = ("--address", cluster.address, "--storage", str(tmp_path))
    wanted = *place, "--set", "search.concurrent_trials=null"
    crowded = cluster.kdsearch("check", "task.yaml", *wanted, "--set", "resources.cpus=999")
    refused = cluster.kdsearch("launch", "task.yaml", *wanted, "--name", "refused")
    cluster.lose(stranger)
    for done, words in (
        (crowded, "a trial needs 999 CPUs and 0 GPUs on one machine, but there is"),
        (refused, f"{tmp_path} is not shared by all machines"),
    ):
        assert done.returncode == 2
        assert words in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "searches/refused").exists()
    assert not (tmp_path / "teachers").exists()
