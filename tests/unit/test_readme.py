"""The README.md files: short, and naming only what exists."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml

from kdcore import Recipe
from kdcore.training.named_recipes import NAMED_RECIPES
from search.cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(
    ROOT / folder / "README.md"
    for folder in ("", "kdcore", "search", "experiments", "experiments/published", "tests")
)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_first_page_has_at_most_10_kb() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


def test_documents_are_readmes_in_the_folder_that_they_are_about() -> None:
    below = [path for document in DOCUMENTS[1:] for path in document.parent.rglob("*.md")]
    written = {path for path in (*ROOT.glob("*.md"), *below) if "runs" not in path.parts}
    assert written == set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in links:
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_targets_and_modules_exist(document: Path) -> None:
    text = document.read_text()
    commands = typer.main.get_command(app).commands
    assert set(re.findall(r"(?:^|`)kdsearch ([a-z]+)", text, re.MULTILINE)) <= commands.keys()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in re.findall(r"(?:^|`)make ((?:[a-z]+ ?)+)", text, re.MULTILINE):
        assert set(words.split()) <= set(targets), words
    for module in re.findall(r"python -m (tests(?:\.[a-z_]+)+)", text):
        assert find_spec(module), module


def test_every_key_and_every_name_of_a_recipe_is_explained() -> None:
    text = (ROOT / "experiments/README.md").read_text()
    table = text[text.index("## Training") : text.index("## Data")]
    for key in Recipe.model_fields:
        assert re.search(rf"`{key}[`:]", table), key
    for name, named in NAMED_RECIPES.items():
        how = Recipe.model_validate({"recipe": name})
        assert f"| `{name}` | {named.description} | {how} |\n" in table


def test_the_experiment_on_the_first_page_is_the_file_that_it_names() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown in (ROOT / "experiments/fashion_mnist.yaml").read_text()
    assert yaml.safe_load(shown)
