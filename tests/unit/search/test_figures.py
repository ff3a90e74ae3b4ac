"""Published figures: how a table is read, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdcore.errors import ConfigError
from search.errors import ExperimentError
from search.experiment.figures import Figure, read_figures
from tests.cases import Case

FIRST: dict[str, Any] = {
    "source": "A",
    "epoch": "last",
    "seeds": 5,
    "pairs": ["big_small", "wide_thin"],
    "teacher": [75.61, 80],
    "student": [None, 70.5],
    "rows": {"kd": [73.3, 71], "at": [None, 72.25]},
}
SECOND: dict[str, Any] = {"source": "B", "pairs": ["big_small"], "rows": {"kd": [[74.43, 0.24]]}}


def write(folder: Path, *tables: dict[str, Any]) -> Path:
    path = folder / "figures.yaml"
    path.write_text(yaml.safe_dump({"tables": list(tables)}))
    return path


def test_each_source_gives_a_figure_of_its_own_and_null_gives_none(tmp_path: Path) -> None:
    figures = read_figures(write(tmp_path, FIRST, SECOND))
    assert figures.pairs == ("big_small", "wide_thin")
    of = figures.of("big_small")
    assert of.teacher == (Figure(0.7561, None, 5, "last", "A"),)
    assert of.student == ()
    assert of.rows == {
        "kd": (Figure(0.733, None, 5, "last", "A"), Figure(0.7443, 0.0024, None, None, "B"))
    }
    assert figures.of("wide_thin").of("at") == (Figure(0.7225, None, 5, "last", "A"),)


def test_an_unknown_pair_or_row_is_refused_with_those_there_are(tmp_path: Path) -> None:
    figures = read_figures(write(tmp_path, FIRST, SECOND))
    with pytest.raises(ConfigError) as caught:
        figures.of("big_smal")
    assert str(caught.value).endswith(
        "'big_smal' are published; did you mean 'big_small'? There are those of big_small, "
        "wide_thin"
    )
    with pytest.raises(ConfigError) as caught:
        figures.of("big_small").of("at")
    assert str(caught.value) == (
        "no published figure of big_small has the row 'at'. Published are kd"
    )


def test_a_mistake_is_named_with_path_value_and_rule(tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({"rows": {"kd": [0.74, "73"]}}, "tables.0.rows.kd.1", "is '73', but must be an accuracy"),
        ({"rows": {"kd": [[74, 1, 2], 73]}}, "tables.0.rows.kd.0", "is [74, 1, 2], but"),
        ({"rows": {"kd": [174, 73]}}, "tables.0.rows.kd.0", "is 174, but"),
        ({"rows": {"kd": [74]}}, "tables.0", "kd has 1 figures for 2 pairs; write null"),
        ({"teacher": [74]}, "tables.0", "teacher has 1 figures for 2 pairs"),
        ({"pairs": ["a", "a"]}, "tables.0", "lists one twice"),
        ({"epoch": "first"}, "tables.0.epoch", "is 'first', but"),
        ({"spread": 1}, "tables.0.spread", "Known here: source, pairs, epoch"),
    )
    for changes, key, words in cases:
        with Case(changes):
            with pytest.raises(ExperimentError) as caught:
                read_figures(write(tmp_path, FIRST | changes))
            (problem,) = caught.value.problems
            assert problem.key == key
            assert words in problem.message
