"""A user's own code: what is refused, what a version changes, what loads without being run."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdcore import DataConfig, TeacherConfig, TrialConfig, load_student
from kdcore.backbones.catalogue import build_backbone, constructor_of
from kdcore.backbones.names import versioned
from kdcore.backbones.probe import probe_shapes
from kdcore.contract import plugged
from kdcore.contract.plugged import read_plugin
from kdcore.contract.plugin import Kind, Plugin, digest_of
from kdcore.contract.taps import Tap
from kdcore.data.image_data import open_data
from kdcore.distillation.method_contract import breaches
from kdcore.distillation.plugin_contract import breaches_of
from kdcore.errors import ConfigError, PluginError, WeightsError
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import build_classifier, describe_classifier, save_classifier
from kdcore.teacher.teacher import teacher_folder
from tests.cases import Case
from tests.own_code import EXAMPLES, NETWORK, SQUARES, method, write


@pytest.fixture(autouse=True)
def _nothing_stays_in_use() -> Iterator[None]:
    yield
    plugged.use([])


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere", r"own.py cannot be imported, line 1: ModuleNotFoundError: .*'nowhere'$"),
        ("def f(:", r"own.py cannot be imported, line 1: SyntaxError: invalid syntax$"),
        ("\nprint('hi')", r"own.py prints on import \('hi'\); let it only define things$"),
        ("\nexit(3)", r"own.py exits on import, line 2; let it only define things$"),
        ("import os\nos._exit(0)", r"own.py exits on import, line 2; let it only define things$"),
        ("X = 1", r"own.py adds nothing: it needs METHODS, NETWORKS or DATA_SETS, or one class"),
        ("METHODS = 3", r"METHODS of own.py is 3, but must be a mapping of names"),
        ("METHODS = {'a': 3}", r"the method a of own.py is 3, but must be a class of"),
        ("NETWORKS = {'a': 3}", r"the network a of own.py is 3, but must be a function of"),
        ("NETWORKS = {'A b': dict}", r"own.py has a network called 'A b', but a name has small"),
        ("NETWORKS = {'resnet8': dict}", r"adds the network 'resnet8', but the catalogue has one"),
        ("DATA_SETS = {'digits': dict}", r"adds the data set 'digits', but the catalogue has one"),
        (f"{method()}\nMETHODS = {{'kd': Own}}", r"the method 'kd', but the catalogue .* my_kd$"),
        (f"{method()}\nclass Two(Own): pass", r"has the methods Own, Two; name them in a mapping"),
        (method().replace("    needs", "    other"), r"does not declare what it reads, like needs"),
    ],
)
def test_each_mistake_of_a_file_has_one_message(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        write(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for text, message in (
        ("none.py", rf"there is no file 'none.py': {tmp_path}/none.py is missing"),
        ("my-losses.py", "'my-losses.py' is no name of a module; .* like my_losses.py"),
        ("my losses", "neither a file that ends in .py nor a module like my_package.losses"),
        ("nowhere.losses", "no module 'nowhere.losses': neither beside the experiment nor insta"),
    ):
        with pytest.raises(PluginError, match=message):
            read_plugin(text, tmp_path)


def test_a_package_brings_all_its_files_and_imports_them_relatively(tmp_path: Path) -> None:
    write_text = {
        "own_package/__init__.py": "",
        "own_package/half.py": "HALF = 0.5",
        "own_package/losses.py": f"from .half import HALF\n{method(f'HALF * {SQUARES}')}",
        "own_package/absolute.py": "from own_package.half import HALF",
    }
    for path, text in write_text.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    plugin = read_plugin("own_package.losses", tmp_path)
    assert plugin.methods == ("losses",)
    assert set(plugin.sources) == set(write_text)
    with pytest.raises(PluginError, match="imports its own files relatively"):
        read_plugin("own_package.absolute", tmp_path)
    with pytest.raises(PluginError, match=r"has no own_package/other\.py"):
        read_plugin("own_package.other", tmp_path)


def test_code_stays_in_its_folder_and_is_not_large(tmp_path: Path) -> None:
    plugin = write(tmp_path, method())
    for sources, message in (
        ({"../own.py": ""}, r"the file '\.\./own\.py', outside of its folder"),
        ({"/own.py": ""}, "outside of its folder"),
        ({"own.py": "#" * 2**21}, "install the package on every machine"),
    ):
        digest = digest_of("own", sources)
        with pytest.raises(ValueError, match=message):
            Plugin.model_validate(plugin.model_dump() | {"sources": sources, "digest": digest})
    with pytest.raises(PluginError, match=r"own\.py does not add other"):
        plugged.use([plugin.model_copy(update={"methods": ("own", "other")})])


def test_two_versions_of_a_file_live_beside_each_other(tmp_path: Path) -> None:
    first = write(tmp_path, method("student.logits.sum() * 0 + 1"))
    second = write(tmp_path, method("student.logits.sum() * 0 + 2"))
    assert first.digest != second.digest
    for plugin in (first, second, first):
        plugged.use([plugin])
        assert CATALOGUE["own"].__module__ == f"_kdsearch_plugin_{plugin.digest}.own"
    with (
        pytest.raises(PluginError, match=r"adds the method 'own', as does own\.py"),
        plugged.declared([first, second]),
    ):
        pass


def test_each_version_of_a_network_has_its_own_shapes(tmp_path: Path) -> None:
    wider = NETWORK.replace("in_channels, 8", "in_channels, 24").replace("Linear(8", "Linear(24")
    for text, width in ((NETWORK, 8), (wider, 24), (NETWORK, 8)):
        plugged.use([write(tmp_path, text)])
        shapes = probe_shapes("net", num_classes=3, in_channels=1, image_size=(8, 8))
        assert shapes.embedding_width == width


def test_names_are_known_while_declared_and_code_that_was_not_run_is_not_run(
    tmp_path: Path,
) -> None:
    marker = tmp_path / "was-run"
    text = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n{method()}"
    plugin = write(tmp_path, text)
    marker.unlink()
    # As it comes from a record of somebody else: with another text, which was never run here.
    sources = {"own.py": f"{text}\n# another version"}
    other = Plugin.model_validate(
        plugin.model_dump() | {"sources": sources, "digest": digest_of("own", sources)}
    )
    with plugged.declared([other]):
        assert plugged.is_plugged(Kind.METHODS, "own")
        assert "own" not in CATALOGUE
        with pytest.raises(KeyError):
            CATALOGUE["own"]
    assert not marker.exists()
    assert not plugged.is_plugged(Kind.METHODS, "own")
    with pytest.raises(ValueError, match=r"the code of own\.py is not that of its digest"):
        Plugin.model_validate(plugin.model_dump() | {"sources": sources})


def test_an_entry_point_of_an_installed_package_is_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_losses.py").write_text(method("1 / 0"))
    monkeypatch.syspath_prepend(str(tmp_path))

    def points(group: str) -> list[Any]:
        def load() -> object:
            return importlib.import_module("installed_losses").Own

        found = SimpleNamespace(
            name="installed", module="installed_losses", value="installed_losses:Own", load=load
        )
        return [found] if group == "kdsearch.methods" else []

    plugged._installed.cache_clear()
    monkeypatch.setattr(plugged, "entry_points", points)
    try:
        assert "installed" in CATALOGUE
        assert CATALOGUE["installed"].__name__ == "Own"
        assert plugged.digest_of_name(Kind.METHODS, "installed")
        (breach,) = breaches("installed")
        assert "installed_losses.py, line 15, raises ZeroDivisionError" in breach
        named = read_plugin("installed_losses", tmp_path / "elsewhere")
        assert (named.methods, named.sources) == (("installed_losses",), {})
    finally:
        plugged._installed.cache_clear()


# The contract of methods


@pytest.mark.parametrize("names", [list(CATALOGUE)[start::3] for start in range(3)])
def test_the_whole_catalogue_keeps_the_contract_that_plugins_are_held_to(names: list[str]) -> None:
    for name in names:
        assert breaches(name) == []


@pytest.mark.parametrize(
    ("loss", "declared", "message"),
    [
        (SQUARES, "", ""),
        (SQUARES.replace("mean()", "mean(1)"), "", r"its loss has the shape \(6,\)"),
        ("teacher.logits.sum()", "", "its loss does not depend on the student"),
        ("3.0", "", "its loss has the shape float"),
        (f"{SQUARES} / 0", "", "its loss is inf"),
        (SQUARES, "needs = frozenset({Tap.EMBEDDING})", "reads the logits, which `needs` does no"),
        (
            SQUARES,
            "needs = frozenset({Tap.LOGITS, Tap.MAPS})",
            "it declares that it reads the maps, but no gradient reaches the student's",
        ),
        ("student.logits.exp().mean()", "", "with outputs of the size of 10,000, its loss is inf"),
        (f"{SQUARES} + 1", "", "must be 0; else declare zero_at_equality = False"),
        (
            "(student.logits[1:] - teacher.logits[:-1]).float().square().sum()",
            "zero_at_equality = False",
            "for the same batch in another order; if that is meant, declare batch_symmetric",
        ),
        (
            f"{SQUARES} * self.count()",
            "n = 0\n    def count(self):\n        self.n += 1\n        return self.n",
            "after a resumption its loss is another",
        ),
        (
            SQUARES.replace("student.logits", "student.nothing"),
            "",
            r"own.py, line \d+, raises Attr",
        ),
        (
            SQUARES,
            "class Params(method.Params):\n"
            "        weight: Annotated[float, Field(le=5), Span(1, 10)] = 20.0",
            "its Params have a default that is not legal",
        ),
    ],
)
def test_a_method_that_breaks_a_rule_is_told_which(
    tmp_path: Path, loss: str, declared: str, message: str
) -> None:
    plugin = write(tmp_path, method(loss, declared))
    with torch.random.fork_rng(devices=[]):
        found = breaches_of(plugin, tmp_path)
    if not message:
        assert found == []
        return
    assert len(found) >= 1
    assert re.search(message, found[0]), found


def test_the_examples_keep_the_contract(tmp_path: Path) -> None:
    files = sorted(file.name for file in EXAMPLES.glob("*.py"))
    assert len(files) == 3
    for file in files:
        with Case(file):
            assert breaches_of(read_plugin(file, EXAMPLES), tmp_path) == []


# Networks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("declared_taps = (TapInfo('relu', 16, 2),)", "declares 16 channels, but its map has 8"),
        ("declared_taps = (TapInfo('relu', 8, 4),)", "the reduction 4, but its map is 16x16"),
        ("declared_taps = (TapInfo('conv', 8, 2),)", "the activation relu, but its module reads"),
        ("declared_taps = (TapInfo('rleu', 8, 2),)", "the path of one of its submodules"),
        ("declared_taps = (TapInfo('', 8, 2, 'none'),)", r"has the shape \(2, 7\), but a map is"),
    ],
)
def test_a_tap_that_lies_is_refused_before_anything_is_trained(
    tmp_path: Path, change: str, message: str
) -> None:
    text = NETWORK.replace("class Net(nn.Module):", f"class Net(nn.Module):\n    {change}")
    plugged.use([write(tmp_path, text)])
    with pytest.raises(ConfigError, match=message):
        constructor_of("net")


def test_a_network_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    for number, (old, new, message) in enumerate(
        (
            ("return self.head", "if images.sum() > 0: images = -images\n        return self.head",
             "net cannot be traced: .*; declare its taps in declared_taps"),
            ('{"net": Net}', '{"net": lambda k, c: 3}', "gives 3, but must give a torch.nn.Module"),
            ("super().__init__()", "super().__init__(); raise RuntimeError('no')",
             r"net\d.py, line \d+, raises RuntimeError: no"),
        )
    ):  # fmt: skip
        plugged.use([write(tmp_path, NETWORK.replace(old, new), f"net{number}.py")])
        with Case(new), pytest.raises(ConfigError, match=message):
            constructor_of("net")


@pytest.mark.parametrize(
    ("name", "places"),
    [("narrow", ("relu1", "relu2", "relu3")), ("plain", ("stem", "body", "tail"))],
)
def test_maps_are_those_of_the_modules(name: str, places: tuple[str, ...]) -> None:
    """Declared ones and traced ones: what the submodules give that stand there."""
    plugged.use([read_plugin("small_networks.py", EXAMPLES)])
    backbone = build_backbone(name, num_classes=5, in_channels=3, seed=1).eval()
    network: Any = backbone.get_submodule("network")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    for place in places:
        network.get_submodule(place).register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        logits = network(images)
        expected = list(seen)
        taps = backbone.taps(images, frozenset({Tap.MAPS, Tap.PREACTIVATIONS}))
        embedding = expected[-1].mean((2, 3))
        torch.testing.assert_close(taps.embedding, embedding)
        torch.testing.assert_close(taps.logits, logits)
        weight, bias = network.head.weight, network.head.bias
        torch.testing.assert_close(functional.linear(embedding, weight, bias), logits)
        found = zip(taps.maps.values(), taps.preactivations.values(), expected, strict=True)
        for after, before, wanted in found:
            torch.testing.assert_close(after, wanted)
            torch.testing.assert_close(before.relu(), wanted)
            assert (before < 0).any()
    assert [tap.channels for tap in backbone.declared] == [each.shape[1] for each in expected]


# Identities


def test_an_edited_file_is_another_trial_and_teacher_and_without_plugins_nothing_changes(
    tmp_path: Path,
) -> None:
    data = open_data(DataConfig.model_validate({"name": "digits"}), tmp_path)

    def of(term: str, student: str, teacher: str) -> tuple[str, str, str]:
        training = {"epochs": 1}
        content = {
            "data": {"name": "digits"},
            "teacher": {"backbone": teacher, "training": training},
            "student": student,
            "objective": [{"method": term}],
            "training": training,
        }
        folder = teacher_folder(TeacherConfig.model_validate(content["teacher"]), data, tmp_path)
        return TrialConfig.model_validate(content).identity, folder.name, versioned(teacher)

    def all_three() -> list[tuple[str, str, str]]:
        return [
            of("own", "resnet8", "resnet8"),
            of("kd", "net", "resnet8"),
            of("kd", "resnet8", "net"),
        ]

    plain = of("kd", "resnet8", "resnet8")
    assert "plugins" not in json.loads(plain[0])[0]
    assert plain[1:] == ("digits-resnet8-" + plain[1].rpartition("-")[2], "resnet8")
    versions = []
    for comment in ("", "# edited"):
        files = [
            write(tmp_path, f"{method()}{comment}"),
            write(tmp_path, f"{NETWORK}{comment}", "net.py"),
        ]
        plugged.use(files)
        versions.append(all_three())
        assert of("kd", "resnet8", "resnet8") == plain
        digests = json.loads(versions[-1][0][0])[0]["plugins"]
        assert digests == {"methods own": files[0].digest}
    (loss, student, teacher), (loss_, student_, teacher_) = versions
    for before, after in ((loss, loss_), (student, student_), (teacher, teacher_)):
        assert before[0] != after[0]
    assert [loss[1:], student[1:]] == [loss_[1:], student_[1:]]  # the teacher is resnet8
    assert teacher[1] != teacher_[1]
    assert teacher[2] != teacher_[2]


# Exported students


def test_an_exported_student_runs_only_the_file_that_is_named(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    text = f"{NETWORK}\nfrom pathlib import Path\nPath({str(marker)!r}).touch()"
    plugin = write(tmp_path, text, "net.py")
    plugged.use([plugin])
    data = open_data(DataConfig.model_validate({"name": "digits"}), tmp_path)
    student = build_classifier("net", data, seed=0).eval()
    folder = tmp_path / "best"
    save_classifier(folder, "student", student, describe_classifier(student, "net", data, {}, {}))
    assert json.loads((folder / "student.json").read_text())["own_code"] == {
        "net.py": plugin.digest
    }
    (folder / "net.py").write_text(text)
    plugged.use([])
    marker.unlink()
    with pytest.raises(WeightsError, match=r"needs net.py \(digest .*unless you name that very fi"):
        load_student(folder)
    assert not marker.exists()
    (images,) = list(data.test.batches(400))
    again = load_student(folder, plugins=[folder / "net.py"])
    assert torch.equal(again(images), student(images))
    assert not plugged.is_plugged(Kind.BACKBONES, "net")
    (folder / "net.py").write_text(f"{text}\n# edited")
    with pytest.raises(WeightsError, match=r"needs net\.py"):
        load_student(folder, plugins=[folder / "net.py"])
