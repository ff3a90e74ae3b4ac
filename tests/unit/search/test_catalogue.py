"""The tables of the catalogues, and the document that shows one."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from kdcore.errors import ConfigError
from kdcore.methods import CATALOGUE
from search.cli.catalogue import describe, describe_method, methods_markdown
from search.experiment.reading import read_experiment


def test_kdcores_readme_has_the_generated_table_of_methods() -> None:
    """Paste the output of `kdsearch methods --markdown` where it has not."""
    assert methods_markdown() in Path("kdcore/README.md").read_text()


def test_one_experiment_has_every_method_once() -> None:
    experiment = read_experiment(Path("experiments/digits_all_methods.yaml"))
    first, *others = experiment.objective
    listed = [*first, *(name for slot in others for name in slot if name != "none")]
    assert sorted(listed) == list(CATALOGUE)
    combinations = experiment.search.combinations
    assert experiment.search.trials == len(CATALOGUE) + len(combinations)


def test_the_table_has_a_line_for_every_method_of_equal_width() -> None:
    lines = methods_markdown().splitlines()
    assert len(lines) == len(CATALOGUE) + 2
    assert len({line.count(" | ") for line in lines if "---" not in line}) == 1


def test_a_method_is_shown_with_what_is_published_for_each_benchmark() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(describe_method("kd"))
    lines = [
        " ".join(re.split(r"[^\w.,/:-]+", line)).strip()
        for line in console.export_text().splitlines()
    ]
    assert "weight 0.05 to 50 0.9 0.5" in lines
    assert "cross_entropy - 0.1 0.5" in lines
    assert "temperature 1 to 16 4.0 1.0" in lines
    assert any("RepDistiller" in line and "r34_r18/kd.yaml" in line for line in lines)
    with pytest.raises(ConfigError, match="unknown method 'kdd'; did you mean 'kd'"):
        describe_method("kdd")


def test_a_network_is_described_with_the_taps_that_have_to_be_named() -> None:
    for name, further in (("wrn_16_2", True), ("resnet8", False)):
        console = Console(width=160)
        with console.capture() as shown:
            console.print(describe(name, None, None))
        rows = [line for line in shown.get().splitlines() if "residual sum" in line]
        assert len(rows) == (3 if further else 0)
        assert all(f"stage{n}_sum" in row for n, row in enumerate(rows, start=1))
        assert ("note" in shown.get()) == further
