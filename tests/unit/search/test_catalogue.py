"""The tables of the catalogues, and the document that shows one."""

from pathlib import Path

from rich.console import Console

from kdcore.methods import CATALOGUE
from search.cli.catalogue import describe, methods_markdown


def test_kdcores_readme_has_the_generated_table_of_methods() -> None:
    """Paste the output of `kdsearch methods --markdown` where it has not."""
    assert methods_markdown() in Path("kdcore/README.md").read_text()


def test_the_table_has_a_line_for_every_method_of_equal_width() -> None:
    lines = methods_markdown().splitlines()
    assert len(lines) == len(CATALOGUE) + 2
    assert len({line.count(" | ") for line in lines if "---" not in line}) == 1


def test_a_network_is_described_with_the_taps_that_have_to_be_named() -> None:
    for name, further in (("wrn_16_2", True), ("resnet8", False)):
        console = Console(width=160)
        with console.capture() as shown:
            console.print(describe(name, None, None))
        rows = [line for line in shown.get().splitlines() if "residual sum" in line]
        assert len(rows) == (3 if further else 0)
        assert all(f"stage{n}_sum" in row for n, row in enumerate(rows, start=1))
        assert ("note" in shown.get()) == further
