"""The tables of the catalogues, and the document that shows one."""

from pathlib import Path

from kdcore.methods import CATALOGUE
from search.cli.catalogue import methods_markdown


def test_kdcores_readme_has_the_generated_table_of_methods() -> None:
    """Paste the output of `kdsearch methods --markdown` where it has not."""
    assert methods_markdown() in Path("kdcore/README.md").read_text()


def test_the_table_has_a_line_for_every_method_of_equal_width() -> None:
    lines = methods_markdown().splitlines()
    assert len(lines) == len(CATALOGUE) + 2
    assert len({line.count(" | ") for line in lines if "---" not in line}) == 1
