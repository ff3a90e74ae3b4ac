"""A user's own code in an experiment: read, carried, registered, refused; and its commands."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import search
from kdcore.contract import plugged
from kdcore.contract.plugin import Kind, Plugin
from kdcore.errors import NonFiniteLossError, PluginError
from kdcore.methods import CATALOGUE
from search.cli.app import app, main
from search.errors import ExperimentError
from search.experiment import plugins
from search.experiment.reading import parse_experiment, read_experiment, with_budgets
from search.experiment.running import experiment_to_run, use_plugins
from search.experiment.space.trial_config import trial_config
from search.record.record import SearchRecord
from search.record.storage import Storage
from search.session.faults import lasting_fault
from search.session.preflight import plan
from tests.own_code import DATA, EXAMPLES, NETWORK, SQUARES, method
from tests.synthetic import SMALL, finished_search

OWN = {**SMALL, "objective": [["none", "own"]], "plugins": ["own.py"]}


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plugins, "_registered", {})
    yield
    plugged.use([])


def write(folder: Path, content: dict[str, Any], **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def problems(experiment: Path, storage: Path | None = None) -> list[str]:
    def check() -> None:
        read = read_experiment(experiment)
        assert storage is not None
        plan(read, Storage(str(storage)), str(experiment))

    with pytest.raises(ExperimentError) as caught:
        check()
    assert all("\n" not in problem.message for problem in caught.value.problems)
    return [f"{problem.key}: {problem.message}" for problem in caught.value.problems]


# Reading


def test_a_file_is_beside_the_experiment_and_so_is_that_of_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", OWN, own=method())
    (tmp_path / "over.yaml").write_text("base: below/task.yaml\nseed: 1\n")
    for path in ("below/task.yaml", "over.yaml"):
        (plugin,) = read_experiment(Path(path)).plugins
        assert (plugin.name, plugin.methods) == ("own.py", ("own",))
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(SMALL | {"objective": [["own"]]}))
    set_here = read_experiment(Path("task.yaml"), ["plugins=[below/own.py]"])
    assert set_here.plugins[0].digest == plugin.digest


def test_what_another_search_uses_is_not_known_to_an_experiment(tmp_path: Path) -> None:
    use_plugins(read_experiment(write(tmp_path, OWN, own=method())))
    assert "own" in CATALOGUE
    (found,) = problems(write(tmp_path, {**SMALL, "objective": [["own"]]}))
    assert found.startswith("objective.0.0: unknown method 'own'")


def test_without_plugins_nothing_is_written_of_them(tmp_path: Path) -> None:
    experiment = read_experiment(write(tmp_path, dict(SMALL)))
    assert experiment.plugins == ()
    assert "plugins" not in experiment.model_dump(mode="json")
    assert "plugins" not in experiment.model_dump_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plugins": "own.py"}, "plugins: is 'own.py', but must be a list of files and modules"),
        ({"plugins": ["nun.py"]}, "plugins.0: there is no file 'nun.py': "),
        ({"plugins": ["own.py", "loud.py"]}, "plugins.1: loud.py prints on import ('hello')"),
        ({"plugins": ["own.py", "end.py"]}, "plugins.1: end.py exits on import, line 1"),
        ({"plugins": ["own.py", "kd.py"]}, "plugins.1: kd.py adds the method 'kd', but the catal"),
        ({"plugins": ["own.py", "own.py"]}, "plugins: own.py adds the method 'own', as does own"),
        ({"plugins": []}, "objective.0.1: unknown method 'own'"),
        ({"objective": [["owm"]]}, "objective.0.0: unknown method 'owm'; did you mean 'own'?"),
    ],
)
def test_a_mistake_in_what_is_named_is_one_problem(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    files = {"own": method(), "loud": "print('hello')", "end": "quit()", "kd": method()}
    (found,) = problems(write(tmp_path, OWN | changes, **files))
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("changes", "text", "message"),
    [
        (
            {},
            method(SQUARES.replace("mean()", "mean(1)")),
            "objective: own cannot teach resnet8: its loss has the shape (2,), but must be",
        ),
        ({}, method("1 / 0"), "objective: own cannot teach resnet8: own.py, line 15, raises Z"),
        (
            {"student": "net", "objective": [["kd"]]},
            NETWORK.replace("    def", "    declared_taps = (TapInfo('relu', 9, 2),)\n    def", 1),
            "student: tap 'relu' of net declares 9 channels, but its map has 8",
        ),
        (
            {"data": {"name": "own"}, "objective": [["kd"]]},
            DATA.replace("CHANGE", "train[4] = (train[4][0], None)"),
            "data: image 4 of train of own has the label None, but every image needs an integer",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_what_the_code_does_is_one_problem_of_check(
    tmp_path: Path, changes: dict[str, Any], text: str, message: str
) -> None:
    (found,) = problems(write(tmp_path, OWN | changes, own=text), tmp_path / "runs")
    assert found.startswith(message)


def test_a_method_that_cannot_learn_of_mixed_images_is_refused(tmp_path: Path) -> None:
    mixed = OWN | {"data": {"name": "digits", "augmentation": ["mixup"]}}
    refused = method(declared='mixing = "refused"')
    (found,) = problems(write(tmp_path, mixed, own=refused))
    assert "objective has own, but data.augmentation mixes images" in found


# Where the code goes


def test_the_code_goes_with_the_experiment_where_its_file_is_not(tmp_path: Path) -> None:
    """As an experiment comes to the process of a trial, to a submitted job, and to a resumption."""
    experiment = read_experiment(write(tmp_path, OWN, own=method()))
    as_json = experiment.model_dump_json()
    (tmp_path / "own.py").unlink()
    there = (
        "import sys; from search.experiment.running import experiment_to_run; "
        "from search.experiment.space.trial_config import trial_config; "
        "found = experiment_to_run(sys.stdin.read()); "
        "print(trial_config(found, {'objective.1': 'own'}).identity)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", there],
        input=as_json,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    digests = json.loads(ran.stdout)[0]["plugins"]
    assert digests == {"methods own": experiment.plugins[0].digest}
    submitted = tmp_path / "submitted.yaml"
    submitted.write_text(yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False))
    assert read_experiment(submitted) == experiment
    assert with_budgets(experiment, ["search.trials=9"]).plugins == experiment.plugins
    # What was changed on the way is not run.
    changed = json.loads(as_json)
    changed["plugins"][0]["sources"]["own.py"] += "\n# changed"
    with pytest.raises(ValueError, match="is not that of its digest"):
        experiment_to_run(json.dumps(changed))


def test_the_code_goes_to_further_workers_of_a_trial(tmp_path: Path) -> None:
    """What they are given has settings of the plugin's own classes in it."""
    settings = "class Params(method.Params):\n        factor: float = 2.5"
    experiment = read_experiment(write(tmp_path, OWN, own=method(declared=settings)))
    use_plugins(experiment)
    config = trial_config(experiment, {"objective.1": "own", "own.factor": 7.5})
    work = pickle.dumps((print, (config.objective[0],)))
    given = (experiment.resources, "", 0, plugged.in_use(), work)
    there = (
        "import pickle, sys; from contextlib import nullcontext; "
        "from search.session import worker_group as group; "
        "group._own_address = group._speak_from = group.reach_store = group.joined = "
        "lambda *given: nullcontext('the workers'); "
        "group._work_along(1, *pickle.load(sys.stdin.buffer))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", there],
        input=pickle.dumps(given),
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    assert b"the workers own" in ran.stdout


def test_a_record_is_read_and_written_without_running_what_is_in_it(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    touch = f"\nfrom pathlib import Path\nPath({str(marker)!r}).touch()\n"
    files = {
        "own": method() + touch,
        "images": DATA.replace("CHANGE", "").replace('"own"', '"images"'),
    }
    content = OWN | {"plugins": ["own.py", "images.py"], "data": {"name": "images"}}
    experiment = read_experiment(write(tmp_path, content, **files))
    record = finished_search([]).model_copy(update={"experiment": experiment})
    marker.unlink()
    (tmp_path / "record.json").write_text(record.model_dump_json())
    reading = (
        "import sys; from search.record.record import SearchRecord; "
        "found = SearchRecord.model_validate_json(open('record.json').read()); "
        "print(found.model_dump_json() == open('record.json').read(), "
        "any(name.startswith('_kdsearch_plugin') for name in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", reading], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert ran.stdout.split() == ["True", "False"]
    assert not marker.exists()
    assert SearchRecord.model_validate_json(record.model_dump_json()) == record


# Registered in Python


def test_what_is_registered_goes_with_the_experiments_that_use_it(tmp_path: Path) -> None:
    def registered(text: str) -> None:
        (tmp_path / "mine.py").write_text(text)
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["mine"] = module
        spec.loader.exec_module(module)
        search.register(methods={"own": module.Own})

    text = f"import search\n{method()}\nsearch.register(methods={{'own': Own}})\n"
    registered(text)  # in the file itself, and once more
    content = {**SMALL, "objective": [["none", "own"]]}
    experiment = parse_experiment(content, "")
    (plugin,) = experiment.plugins
    assert plugin.methods == ("own",)
    assert search.Experiment(**content).plugins == (plugin,)
    named = search.Experiment(**{**content, "plugins": [plugin.model_dump()], "name": "own"})
    assert named.plugins == (plugin,)
    assert parse_experiment({**SMALL, "name": "own"}, "").plugins == ()
    with pytest.raises(ValueError, match=r"is 'mine\.py', but must be the code itself here"):
        search.Experiment(**{**content, "plugins": ["mine.py"]})
    use_plugins(experiment)
    assert CATALOGUE["own"].__name__ == "Own"
    registered(f"{text}# edited")
    (edited,) = parse_experiment(content, "").plugins
    assert edited.digest != plugin.digest
    with pytest.raises(PluginError, match="must be a class or function of yours"):
        search.register(methods={"own": print})  # type: ignore[dict-item]


def test_a_file_that_launches_a_search_is_told_to_define_only(tmp_path: Path) -> None:
    launching = "import search\nsearch.launch(search.read_experiment('task.yaml'))"
    (found,) = problems(write(tmp_path, OWN, own=launching))
    assert "own.py cannot be imported, line 2" in found


# Faults


def test_a_fault_of_own_code_lasts_and_one_of_the_machine_does_not(tmp_path: Path) -> None:
    text = "def fail(error):\n    raise error\n\nNETWORKS = {'fail': fail}"
    (tmp_path / "faulty.py").write_text(text)
    plugged.use([plugged.read_plugin("faulty.py", tmp_path)])
    fail = plugged.loaded(Kind.BACKBONES, "fail")
    said = {}
    for error in (KeyError("a\nb"), SystemExit(3), OSError("full"), torch.OutOfMemoryError("m")):
        try:
            fail(error)
        except BaseException as caught:
            said[type(error).__name__] = lasting_fault(caught)
    assert said == {
        "KeyError": "faulty.py, line 2, raises KeyError: 'a\\nb'",
        "SystemExit": "faulty.py, line 2, raises SystemExit: 3",
        "OSError": "",
        "OutOfMemoryError": "",
    }
    assert lasting_fault(KeyError("of kdsearch itself")) == ""
    assert lasting_fault(NonFiniteLossError("the term kd")) == "the term kd"


# Commands


@pytest.mark.parametrize("raised", ["1 / 0", "exit()"])
def test_own_code_that_fails_in_a_command_is_no_defect_of_kdsearch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: str,
) -> None:
    text = NETWORK.replace("return self.head", f"self.training and {raised}; return self.head")
    taps = text.replace("    def", "    declared_taps = ()\n    def", 1)
    write(tmp_path, OWN | {"student": "net", "objective": [["kd"]]}, own=taps)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kdsearch", "check", "task.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kdsearch: your own code: own.py, line 14, raises ")


def test_check_plugin_says_what_is_wrong_or_how_to_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(method())
    good = CliRunner().invoke(app, ["check-plugin", "own.py"])
    assert good.exit_code == 0
    assert "own.py: method own (digest " in good.output
    assert "twin" not in good.output
    for factor, said in ((1, "own: for 6 images its loss takes "), (2, "but its twin gives ")):
        twin = f"def twin(self, student, teacher, batch): return {factor} * {SQUARES}"
        (tmp_path / "own.py").write_text(method(declared=twin))
        assert said in CliRunner().invoke(app, ["check-plugin", "own.py"]).output
    (tmp_path / "own.py").write_text(method(f"{SQUARES} / 0"))
    bad = CliRunner().invoke(app, ["check-plugin", "own.py"])
    assert (bad.exit_code, bad.output) == (2, "own.py: own: its loss is inf\n" * 2)


def test_new_files_work_as_they_are_written_and_pytest_holds_them_to_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = {"method": "soft_squares", "network": "small_net", "data": "two_noises"}
    for kind, name in kinds.items():
        made = CliRunner().invoke(app, ["new", kind, name])
        assert made.exit_code == 0
        assert f"wrote {name}.py" in made.output
    wrong = (
        method(f"{SQUARES} + 1"),
        DATA.replace("CHANGE", "train = []"),
        "METHODS = {'own': Own}",
    )
    (tmp_path / "wrong.py").write_text("\n".join(wrong))
    named = " ".join((*(f"{name}.py" for name in kinds.values()), "wrong.py", "nowhere.py"))
    asked = ("-p", "kdcore.distillation.pytest_plugin", "-o", f"kdsearch_plugins={named}")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *asked],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(search.__file__).parents[1])},
    )
    assert "3 failed, 9 passed" in ran.stdout, ran.stdout
    for said in (
        "FAILED wrong.py::method own",
        "own: its loss is 1 where both networks agree, but must be 0; else declare",
        "FAILED wrong.py::data set own",
        "the data set own has 0 images for training and 30 for the test",
        "FAILED nowhere.py::it can be read",
        "there is no file 'nowhere.py'",
    ):
        assert said in ran.stdout, ran.stdout
    assert "Traceback" not in ran.stdout
    for kind, name, message in (
        ("method", "soft_squares", "is there already"),
        ("method", "kd", "the catalogue has a method 'kd'; choose another, like my_kd"),
        ("network", "resnet8", "the catalogue has a network 'resnet8'"),
        ("data", "digits", "the catalogue has a data set 'digits'"),
        ("data", "class", "'class' is no name of a data set"),
    ):
        again = CliRunner().invoke(app, ["new", kind, name])
        assert message in str(again.exception)


def test_the_experiment_of_the_examples_can_be_launched(tmp_path: Path) -> None:
    experiment = read_experiment(EXAMPLES / "own_code.yaml")
    prepared = plan(experiment, Storage(str(tmp_path)), "own_code.yaml")
    assert prepared.data.num_classes == 4
    assert all(isinstance(each, Plugin) for each in prepared.experiment.plugins)
