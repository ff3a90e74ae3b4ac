"""The processes of trials: one takes over that of another, and sees the GPUs that are its own."""

import json
from pathlib import Path

import pytest

from tests.integration.commands import succeeded

pytestmark = pytest.mark.integration

# Two trials in one process; each is stopped after its first report, and takes its time to end.
SEARCH = """
import json
import sys
import time
from search.environment import prepare

prepare()
import ray
from ray import tune

def trial(config):
    try:
        for epoch in range(1, 4):
            tune.report({"epoch": epoch})
    finally:
        time.sleep(3)

ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False)
tuner = tune.Tuner(
    trial,
    param_space={"number": tune.grid_search([0, 1])},
    tune_config=tune.TuneConfig(reuse_actors=True),
    run_config=tune.RunConfig(storage_path=sys.argv[1], stop={"epoch": 1}, verbose=0),
)
print(json.dumps([str(result.error or "") for result in tuner.fit()]))
"""


def test_a_stopped_trial_that_ends_slowly_costs_no_other_trial(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(SEARCH)
    said = succeeded(tmp_path, "start.py", str(tmp_path))
    assert json.loads(said.splitlines()[-1]) == ["", ""]


# The second trial takes over the first one's process, which dies meanwhile.
DEATH = """
import json
import os
import signal
import sys
import time
from pathlib import Path
from search.environment import prepare

prepare()
import ray
from ray import tune
from search.cluster.ray_private import retrying_lost_processes

folder = sys.argv[1]

def trial(config):
    died = Path(folder, "died")
    try:
        for epoch in range(1, 4):
            tune.report({"epoch": epoch})
    finally:
        if config["number"] == 0 and not died.exists():
            died.touch()
            time.sleep(3)
            os.kill(os.getpid(), signal.SIGKILL)

ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False)
tuner = tune.Tuner(
    trial,
    param_space={"number": tune.grid_search([0, 1])},
    tune_config=tune.TuneConfig(reuse_actors=True),
    run_config=tune.RunConfig(
        storage_path=folder,
        stop={"epoch": 1},
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=1),
    ),
)
with retrying_lost_processes():
    results = tuner.fit()
print(json.dumps([[str(each.error or ""), each.metrics["epoch"]] for each in results]))
"""


def test_a_process_that_dies_while_it_is_taken_over_costs_no_trial(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(DEATH)
    said = succeeded(tmp_path, "start.py", str(tmp_path))
    assert (tmp_path / "died").exists()
    assert json.loads(said.splitlines()[-1]) == [["", 1], ["", 1]]


# Tasks, as the teacher and what measures; and trials of Tune, in a process that is used again.
GPUS = """
import json
import os
import sys
from functools import partial
from pathlib import Path
from search.environment import prepare

prepare()
import ray
from ray import tune
from search.cluster.connection import connect

def visible():
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all")

def trial(config):
    tune.report({"visible": visible()})

def seen_by_task(gpus):
    return ray.get(ray.remote(visible).options(num_cpus=1, num_gpus=gpus).remote())

def seen_by_trials(gpus):
    found = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1, "gpu": gpus}),
        param_space={"number": tune.grid_search([0, 1])},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(Path.cwd()), verbose=0),
    )
    return [result.metrics["visible"] for result in found.fit()]

address = sys.argv[1] if len(sys.argv) > 1 else None
if address is None:
    ray.init = partial(ray.init, num_gpus=8, num_cpus=1)
connect(address, Path("log"))
shares = 0, 0.5, 1, 0
print(json.dumps([[seen_by_task(gpus) for gpus in shares], seen_by_trials(0)]))
"""
SEEN = [["", "0", "0", ""], ["", ""]]


def test_a_process_without_a_share_of_a_gpu_sees_none(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(GPUS)
    said = succeeded(tmp_path, "start.py")
    assert json.loads(said.splitlines()[-1]) == SEEN
