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


# As many trials as fit wait for each other. What each sees, and what a process sees that is asked
# for the machine's GPUs.
SHARES = """
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from search.environment import prepare

prepare()
from ray import tune
from search.cluster import machines
from search.cluster.connection import connect
from search.experiment.reading import read_experiment
from search.session.sharing import Needs, decided

folder = Path("there").absolute()
folder.mkdir()

def trial(config):
    Path(folder, str(config["number"])).touch()
    while len(list(folder.iterdir())) < 16:
        time.sleep(0.1)
    tune.report({"visible": os.environ.get("CUDA_VISIBLE_DEVICES", "all")})

connect(sys.argv[1], Path("log"))
machines.smallest_gpu = lambda: (os.environ.get("CUDA_VISIBLE_DEVICES", "all"), 80 * 2**30)
(head,) = machines.machines_with_gpus()
experiment = read_experiment(Path("shared.yaml"), ["search.concurrent_trials=null"])
there = [replace(head, cores=16)]
resources = decided(experiment, there, lambda machine: Needs(2**30, 0.5), 99).experiment.resources
tuner = tune.Tuner(
    tune.with_resources(trial, {"cpu": 0, "gpu": resources.gpus}),  # the cores are not there
    param_space={"number": tune.grid_search(list(range(16)))},
    tune_config=tune.TuneConfig(max_concurrent_trials=16),
    run_config=tune.RunConfig(storage_path=str(Path.cwd()), verbose=0),
)
seen = sorted(result.metrics["visible"] for result in tuner.fit())
print(json.dumps([head.gpus, head.gpu, resources.written, seen]))
"""


def test_trials_share_all_gpus_of_a_cluster_each_as_many_as_was_decided(
    cluster: RayCluster,
) -> None:
    (cluster.folder / "start.py").write_text(SHARES)
    (cluster.folder / "shared.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    variables = {"HOME": str(cluster.folder / "home"), "RAY_AUTH_MODE": "token"}
    said = succeeded(cluster.folder, "start.py", cluster.address, **variables)
    assert json.loads(said.splitlines()[-1]) == [
        *(8, "all"),
        {"cpus": 1, "gpus": 0.5},
        sorted(2 * [str(number) for number in range(8)]),
    ]


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
