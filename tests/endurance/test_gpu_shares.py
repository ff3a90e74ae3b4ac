"""Who sees which GPU on a cluster that others have started."""

import json
from pathlib import Path

import pytest

from tests.endurance.test_reused_processes import GPUS, SEEN
from tests.integration.commands import succeeded
from tests.integration.ray_cluster import RayCluster

pytestmark = pytest.mark.integration


def test_a_process_without_a_share_of_a_gpu_sees_none_of_a_clusters(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(GPUS)
    cluster = RayCluster(tmp_path, head_cpus=1, head_gpus=8)
    try:
        variables = {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"}
        said = succeeded(tmp_path, "start.py", cluster.address, **variables)
    finally:
        cluster.close()
    assert json.loads(said.splitlines()[-1]) == SEEN
