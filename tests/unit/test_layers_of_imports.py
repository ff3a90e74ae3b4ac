"""Who may import whom: the rules between folders, and the picture of them in README's tour."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kdcore", "search")

# From the ground up: a folder (or file) imports only those of the lines above its own.
LAYERS = {
    "kdcore": (
        ("errors",),
        ("contract",),
        ("operations",),
        ("methods", "backbones", "data"),
        ("networks",),
        ("execution",),
        ("teacher_cache",),
        ("training",),
        ("teacher",),
        ("distillation",),
    ),
    "search": (
        ("errors", "environment"),
        ("experiment",),
        ("record",),
        ("stopping", "leaderboard"),
        ("report", "export", "cluster"),
        ("tracking",),
        ("session",),
        ("cli",),
    ),
}


def picture() -> str:
    """The layers from the top down, as README's tour draws them."""
    lines = []
    for package in reversed(PACKAGES):
        lines.append(f"{package}/")
        lines += [f"  {'  '.join(layer)}" for layer in reversed(LAYERS[package])]
    return "\n".join(lines)


# Library -> the only places that may import it.
ALLOWED = {
    "ray": {"search/session", "search/cluster", "search/stopping/scheduler.py"},
    "mlflow": {"search/tracking"},
    "optuna": {
        "search/session/sampler.py",
        "search/session/sampling",
        "search/experiment/space",
        "search/report/importance.py",
    },
    "matplotlib": {"search/report/plots", "search/session/search.py"},
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(tree: ast.AST, file: Path) -> set[str]:
    """Full names of what a file imports, wherever in it; of `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = file.relative_to(ROOT).parts[: -node.level]
                origin = ".".join((*package, *filter(None, [origin])))
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return names


def imports_of(file: Path) -> set[str]:
    return imported(ast.parse(file.read_text(), str(file)), file)


def reaches(names: set[str], package: str) -> set[str]:
    """Those names that are the package or lie in it."""
    return {name for name in names if name == package or name.startswith(f"{package}.")}


FILES = [file for package in PACKAGES for file in sources(package)]


def place(file: Path) -> tuple[str, str]:
    """The package of a file, and its folder (or its own name) in there."""
    package, *inside = file.relative_to(ROOT).with_suffix("").parts
    return package, inside[0]


def test_imports_of_every_form_are_read() -> None:
    text = """
import ray.tune as tune
def later():
    from mlflow import tracking
    from . import record
    from .space import Space
    from ..kdcore import methods
"""
    names = imported(ast.parse(text), ROOT / "search" / "trial.py")
    assert names >= {"ray.tune", "mlflow", "mlflow.tracking"}
    assert names >= {"search.record", "search.space.Space", "kdcore.methods"}
    assert reaches(names, "ray") == {"ray.tune"}
    assert reaches({"rayon", "ray"}, "ray") == {"ray"}


def test_there_are_sources_to_read() -> None:
    assert len(sources("kdcore")) > 20


def test_the_picture_in_the_readme_is_that_of_the_layers() -> None:
    """Beside its lines stand remarks, which are the README's own."""
    without_remarks = re.sub(r" +#.*", "", (ROOT / "README.md").read_text())
    assert picture() in without_remarks, f"README's tour must show\n{picture()}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_has_its_layer_and_there_are_at_most_a_dozen(package: str) -> None:
    found = {place(file)[1] for file in sources(package)} - {"__init__", "__main__"}
    assert found == {name for layer in LAYERS[package] for name in layer}
    assert len(found) <= 12


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_imports_only_what_lies_below_it(package: str) -> None:
    height = {name: i for i, layer in enumerate(LAYERS[package]) for name in layer}
    wrong = []
    for file in sources(package):
        _, own = place(file)
        if own in ("__init__", "__main__"):
            continue
        for name in reaches(imports_of(file), package):
            other = [*name.split("."), ""][1]
            if other in height and other != own and height[other] >= height[own]:
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_no_two_files_import_each_other() -> None:
    """Not even by a longer way, functions and type hints included."""
    modules = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in FILES}
    graph = {name: imports_of(file) & modules.keys() for name, file in modules.items()}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in graph[name] - {name}:
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_kdcore_knows_nothing_of_the_search() -> None:
    for file in sources("kdcore"):
        for package in ("ray", "optuna", "mlflow", "search"):
            assert not reaches(imports_of(file), package), file


def test_a_library_of_the_search_is_imported_only_where_it_belongs() -> None:
    for file in FILES:
        path = file.relative_to(ROOT)
        for library, allowed in ALLOWED.items():
            if not any(path.is_relative_to(each) for each in allowed):
                assert not reaches(imports_of(file), library), file


def test_a_method_imports_neither_another_method_nor_a_backbone() -> None:
    for file in sources("kdcore/methods"):
        if file.name != "__init__.py":
            names = imports_of(file)
            assert not reaches(names, "kdcore.methods"), file
            assert not reaches(names, "kdcore.backbones"), file


def test_files_have_names_of_their_own_and_no_more_than_450_lines() -> None:
    for file in FILES:
        assert file.name not in {"utils.py", "helpers.py", "common.py", "base.py"}
        assert len(file.read_text().splitlines()) <= 450, file


TRIAL = """
import sys
import search.session.trial
from kdcore import TrialConfig, distill

config = TrialConfig.model_validate({
    "data": {"name": "digits", "train_images": 64},
    "teacher": {"backbone": "resnet8", "training": {"epochs": 1}},
    "student": "resnet8",
    "objective": [{"method": "kd"}],
    "training": {"epochs": 1},
    "cache": {},
})
for report in distill(config, workspace=sys.argv[1]):
    pass
print(*{"torchvision", "timm", "matplotlib", "mlflow", "PIL"} & sys.modules.keys())
"""


def test_a_trial_imports_nothing_slow_that_it_does_not_need(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", TRIAL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == ""
