"""A reproduction as files: Markdown, Parquet, and the picture of its differences."""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.leaderboard.formats import parquet_file
from search.record.wording import markdown_table
from search.report.files import write_whole
from search.report.reproduction.comparison import Accuracy, Block, Line
from search.report.reproduction.table import COLUMNS, NOISE, PROTOCOL, cost, notes, rows

TABLE, VALUES, PICTURE = "reproduction.md", "reproduction.parquet", "differences.png"
"""The names of the files."""

# By column, Arrow's name of its type; with [] there is a value for each seed.
_TYPES = {
    **dict.fromkeys(("pair", "row", "objective"), "string"),
    **dict.fromkeys(("published", "published_spread"), "float64"),
    "published_seeds": "int32",
    **dict.fromkeys(("published_epoch", "source"), "string"),
    **dict.fromkeys(("last", "last_deviation", "best", "best_deviation"), "float64"),
    **dict.fromkeys(("difference", "half_width"), "float64"),
    "verdict": "string",
    **dict.fromkeys(("gain", "published_gain", "seconds", "images_per_second"), "float64"),
    "seeds": "int64[]",
    **dict.fromkeys(("last_accuracies", "best_accuracies"), "float64[]"),
    "best_epochs": "int32[]",
    "run_seconds": "float64[]",
}


def as_markdown(name: str, blocks: Sequence[Block]) -> str:
    """The tables in Markdown; accuracies in percent, differences in percentage points."""
    parts = [f"# Reproduction {name}", PROTOCOL]
    for block in blocks:
        table = markdown_table((COLUMNS, *rows(block)))
        parts += [f"## {block.title}", table, *notes(block)]
    whole = [f"In all: {cost(blocks)}."] if len(blocks) > 1 else []
    return "\n\n".join([*parts, NOISE, *whole]) + "\n"


def as_parquet(blocks: Sequence[Block]) -> bytes:
    """All lines, with the values of each run; accuracies and differences are shares of 1."""
    return parquet_file([_values(line) for block in blocks for line in block.lines], _TYPES)


def _values(line: Line) -> dict[str, Any]:
    figure, runs = line.figure, line.runs
    last, last_deviation = _parts(line.last)
    best, best_deviation = _parts(line.best)
    return {
        "pair": line.pair,
        "row": line.row,
        "objective": line.objective,
        "published": figure and figure.accuracy,
        "published_spread": figure and figure.spread,
        "published_seeds": figure and figure.seeds,
        "published_epoch": figure and figure.epoch,
        "source": figure and figure.source,
        "last": last,
        "last_deviation": last_deviation,
        "best": best,
        "best_deviation": best_deviation,
        "difference": line.difference,
        "half_width": line.half_width,
        "verdict": line.verdict or None,
        "gain": line.gain,
        "published_gain": line.published_gain,
        "seconds": line.seconds,
        "images_per_second": line.images_per_second,
        "seeds": [run.seed for run in runs],
        "last_accuracies": [run.accuracies[-1] for run in runs],
        "best_accuracies": [run.test_accuracy for run in runs],
        "best_epochs": [run.best_epoch for run in runs],
        "run_seconds": [run.train_seconds for run in runs],
    }


def _parts(accuracy: Accuracy | None) -> tuple[float | None, float | None]:
    return (None, None) if accuracy is None else (accuracy.mean, accuracy.deviation)


def write_files(name: str, blocks: Sequence[Block], folder: Path, *, picture: bool) -> None:
    """Writes the tables, and on request the picture, which takes seconds; nothing before there is a
    pair to show. What cannot be written or drawn is said, and ends nothing.

    Args:
        name: of the reproduction.
        blocks: its pairs.
        folder: created if missing.
        picture: whether to draw it too.
    """
    if not blocks:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / TABLE, as_markdown(name, blocks).encode())
        write_whole(folder / VALUES, as_parquet(blocks))
        if picture:
            from search.report.plots.differences import differences_png

            content = differences_png(blocks)
            if content is not None:
                write_whole(folder / PICTURE, content)
    except Exception:
        print(f"the files of reproduction {name} could not be written:", file=sys.stderr)
        traceback.print_exc()
