"""Who may import whom: DESIGN.md, section 3, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kdcore", "search")

# Library -> the only files that may import it.
ALLOWED = {
    "ray": {
        "search/launch.py",
        "search/cluster.py",
        "search/confirm.py",
        "search/jobs.py",
        "search/trial.py",
        "search/asha.py",
        "search/searcher.py",
    },
    "mlflow": {"search/tracking.py", "search/registry.py"},
    "optuna": {"search/searcher.py", "search/space.py", "search/importance.py"},
    "matplotlib": {"search/plots.py"},
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
every_file = pytest.mark.parametrize(
    "file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES]
)


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


@pytest.mark.parametrize("file", sources("kdcore"), ids=lambda file: str(file.relative_to(ROOT)))
def test_kdcore_knows_nothing_of_the_search(file: Path) -> None:
    names = imports_of(file)
    for package in ("ray", "optuna", "mlflow", "search"):
        assert not reaches(names, package)


@every_file
def test_a_library_of_the_search_is_imported_only_where_it_belongs(file: Path) -> None:
    names = imports_of(file)
    for library, allowed in ALLOWED.items():
        if file.relative_to(ROOT).as_posix() not in allowed:
            assert not reaches(names, library)


@pytest.mark.parametrize(
    "file",
    [file for file in sources("kdcore/methods") if file.name != "__init__.py"],
    ids=lambda file: file.stem,
)
def test_a_method_imports_neither_another_method_nor_a_backbone(file: Path) -> None:
    names = imports_of(file)
    assert not reaches(names, "kdcore.methods")
    assert not reaches(names, "kdcore.backbones")


@every_file
def test_files_have_names_of_their_own(file: Path) -> None:
    assert file.name not in {"utils.py", "helpers.py", "common.py", "base.py"}


TRIAL = """
import sys
import search.trial
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
