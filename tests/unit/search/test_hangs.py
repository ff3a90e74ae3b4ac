"""Code of a user's own that does not come back: told in a trial, ended everywhere else."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdcore.contract import plugged, plugin_faults
from kdcore.contract.plugin import Kind
from kdcore.contract.plugin_faults import ending_hangs, telling_of_hangs
from kdcore.errors import PluginError
from search.errors import ExperimentError
from search.experiment.reading import read_experiment
from search.experiment.schema import Resources
from search.record.storage import Storage
from search.session.preflight import plan
from search.session.preparation import train_teacher
from tests.cases import Case
from tests.own_code import DATA, NETWORK, method
from tests.synthetic import SMALL

# As of code that tries again for ever.
HANG = """
import time
def hang():
    while True:
        try:
            time.sleep(0.05)
        except Exception:
            pass
"""
END = "own.py, line 6, has not come back for 0.2 s; if it is only slow, let KDSEARCH_PLUGIN_SECONDS"


@pytest.fixture(autouse=True)
def _a_short_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In which only the line counts that waits: on a busy machine others take longer, too."""
    place = plugin_faults._place

    def waiting(frame: Any) -> str:
        found = place(frame)
        return found if found in ("own.py, line 6", "slow.py, line 4") else ""

    monkeypatch.setattr(plugin_faults, "_place", waiting)
    monkeypatch.setattr(plugin_faults, "_exit", lambda status: None)  # nor is this process ended
    monkeypatch.setenv("KDSEARCH_PLUGIN_SECONDS", "0.2")
    yield
    plugged.use([])


def written(folder: Path, code: str, **keys: Any) -> Path:
    (folder / "own.py").write_text(f"{HANG}\n{code}")
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "plugins": ["own.py"], **keys}))
    return path


def test_code_that_does_not_come_back_in_a_trial_is_told_with_its_place(tmp_path: Path) -> None:
    text = "import time\ndef wait(give_up):\n    while not give_up():\n        time.sleep(0.01)\n"
    (tmp_path / "slow.py").write_text(f"{text}\nNETWORKS = {{'slow': wait}}")
    plugin = plugged.read_plugin("slow.py", tmp_path)
    plugged.use([plugin])
    wait = plugged.loaded(Kind.BACKBONES, "slow")
    told: list[str] = []
    with telling_of_hangs(told.append, [plugin]):
        wait(lambda: bool(told))
    (reason,) = told
    assert reason == "slow.py, line 4, has not come back for 0.2 s"
    with telling_of_hangs(told.append, [plugin]):  # code that is no plugin's may take its time
        time.sleep(0.5)
    assert told == [reason]


def test_an_import_that_hangs_is_one_problem_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        read_experiment(written(tmp_path, "hang()"))
    (problem,) = caught.value.problems
    assert problem.key == "plugins.0"
    assert problem.message.startswith(f"own.py hangs on import: {END}")


def test_what_hangs_before_a_search_ends_the_check(tmp_path: Path) -> None:
    for code, keys in (
        (DATA.replace("CHANGE", "hang()"), {"data": {"name": "own"}}),
        (NETWORK.replace("super().__init__()", "super().__init__(); hang()"), {"student": "net"}),
        (method("hang()"), {"objective": [["none", "own"]]}),
    ):
        experiment = read_experiment(written(tmp_path, code, **keys))
        with Case(str(keys)), pytest.raises(PluginError, match=END):
            plan(experiment, Storage(str(tmp_path / "runs")), "task.yaml")


def test_a_teacher_that_hangs_or_raises_ends_the_worker_that_prepares_it(tmp_path: Path) -> None:
    taps = "declared_taps = ()\n    def __init__"
    teacher = {"backbone": "net", "training": {"epochs": 1}}
    for what, message in (
        ("hang()", END),
        ("1 / 0", r"own\.py, line \d+, raises ZeroDivisionError"),
    ):
        code = NETWORK.replace("def __init__", taps).replace(
            "return self.head", f"self.training and {what}\n        return self.head"
        )
        experiment = read_experiment(written(tmp_path, code, teacher=teacher))
        asked = experiment.model_dump_json(), str(tmp_path / "runs")
        with Case(what), pytest.raises(PluginError, match=message):
            list(train_teacher(*asked, Resources(cpus=1), experiment.teachers[0]))


def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("ten", "0", "nan"):
        monkeypatch.setenv("KDSEARCH_PLUGIN_SECONDS", text)
        with (
            Case(text),
            pytest.raises(PluginError, match=f"is '{text}', but must be"),
            ending_hangs(),
        ):
            pass


def test_code_that_cannot_be_ended_ends_with_its_process() -> None:
    stubborn = HANG.replace("except Exception", "except BaseException")
    running = (
        "from kdcore.contract.plugin_faults import FILE, ending_hangs\n"
        f"exec(compile({stubborn!r}, FILE + 'own.py', 'exec'))\n"
        "with ending_hangs():\n    hang()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", running], capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("kdsearch: your own code: own.py, line ")
    assert ran.stderr.endswith(", has not come back for 0.2 s; it cannot be ended alone\n")
