"""Trials that take over the process of one that was stopped."""

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
