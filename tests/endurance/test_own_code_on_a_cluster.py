"""A user's own loss, network and data set, searched on machines that do not have their files; and
what becomes of code that raises, hangs, exits or gives NaN."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import kdcore
from search.record.files import read_record
from search.record.storage import Storage
from tests.integration.ray_cluster import RayCluster

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "experiments" / "plugins"

# On the two images of the check before a search they behave.
FAULTY = """
import time
from kdcore.contract.method import Method
from kdcore.contract.taps import Tap

class Faulty(Method):
    '''The squared difference of the logits, at first.'''
    needs = frozenset({Tap.LOGITS})
    def loss(self, student, teacher, batch):
        squares = (student.logits - teacher.logits).square().mean()
        return squares if len(batch.labels) == 2 else self.fail(squares)

class Raises(Faulty):
    def fail(self, squares):
        raise RuntimeError("as it was told to")

class Hangs(Faulty):
    def fail(self, squares):
        while True:
            time.sleep(0.1)

class Exits(Faulty):
    def fail(self, squares):
        raise SystemExit(3)

class Nan(Faulty):
    def fail(self, squares):
        return squares * float("nan")

METHODS = {"raises": Raises, "hangs": Hangs, "exits": Exits, "nan": Nan}
"""

EXPERIMENT: dict[str, Any] = {
    "plugins": ["cosine_logits.py", "small_networks.py", "stripes.py", "faulty.py"],
    "data": {"name": "stripes", "augmentation": ["pad_crop"]},
    "teacher": {"backbone": "plain", "training": {"epochs": 1}},
    "student": "narrow",
    "objective": [["none", "cosine_logits", "raises", "hangs", "exits", "nan"]],
    "training": {"epochs": 1},
    "search": {"trials": 6, "asha": None},
    "resources": {"cpus": 1, "gpus": 0},
}


def test_own_code_is_searched_on_machines_without_its_files(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for file in EXAMPLES.glob("*.py"):
        shutil.copy(file, own)
    (own / "faulty.py").write_text(FAULTY)
    (own / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (tmp_path / "shared").mkdir()
    storage = Storage(str(tmp_path / "shared"))
    cluster = RayCluster(tmp_path)
    try:
        for _ in range(2):
            cluster.add_machine(without=own if os.geteuid() == 0 else None)
        launched = cluster.kdsearch(
            *("launch", "own/task.yaml", "--address", cluster.address, "--storage", storage.uri),
            KDSEARCH_PLUGIN_SECONDS="5",
        )
        assert launched.returncode == 0, launched.stdout + launched.stderr
    finally:
        cluster.close()
    shutil.rmtree(own)

    record = read_record(storage, "task-1")
    trials = {trial.methods: trial for trial in record.trials}
    reasons = {
        "raises": "faulty.py, line 15, raises RuntimeError: as it was told to",
        "hangs": "faulty.py, line ",
        "exits": "faulty.py, line 24, raises SystemExit: 3",
        "nan": "the term nan is not finite",
    }
    for name, reason in reasons.items():
        assert (trials[name].state, trials[name].epochs_done) == ("failed", 0)
        assert trials[name].reason.startswith(reason)
    assert trials["hangs"].reason.endswith(", has not come back for 5 s")
    assert record.state == "finished"
    assert trials["none"].state == "finished"
    assert trials["cosine_logits"].state == "finished"

    best = Path(storage.uri, "searches", "task-1", "best")
    with pytest.raises(kdcore.KdsearchError, match=r"needs small_networks\.py"):
        kdcore.load_student(best)
    student = kdcore.load_student(best, plugins=[best / "small_networks.py"])
    assert student(torch.zeros(3, 1, 16, 16, dtype=torch.uint8)).shape == (3, 4)
