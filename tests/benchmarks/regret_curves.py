"""Regret over time, as `tests.benchmarks.searchers` found and kept it, as a picture.

    python -m tests.benchmarks.regret_curves [--budget N] [--slots N] [--names NAME ...]

One panel for each pair of networks: the mean regret of each searcher over the budget, and a line
where random search without early stopping ends.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from pyarrow import parquet

from search.report.plots.style import DPI, INK, MUTED, PALETTE, STYLE
from tests.benchmarks.searchers import BASIS, FOUND
from tests.benchmarks.simulation import MOMENTS

NAMES = (
    BASIS,
    "stock random, asha",
    "random, asha",
    "qmc, asha",
    "tpe, none",
    "tpe, asha",
)


def draw(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
    """The picture.

    Args:
        rows: of one budget and number of slots.
        names: of the searchers that are shown.
    """
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), dpi=DPI, layout="constrained")
        panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
        shares = [100 * (moment + 1) / MOMENTS for moment in range(MOMENTS)]
        for pair, axes in zip(pairs, panels, strict=True):
            curves = {row["searcher"]: row["curve"] for row in rows if row["pair"] == pair}
            for name, colour in zip(names, (INK, *PALETTE), strict=False):
                axes.plot(shares, curves[name], color=colour, label=name, linewidth=1.8)
            axes.axhline(curves[BASIS][-1], color=MUTED, linewidth=1, linestyle=":")
            axes.set_title(pair.replace(":", " teaches "), loc="left")
            axes.set_xlabel("% of the time of random search")
            axes.set_xlim(0, 100)
            axes.set_ylim(0, 3)
        panels[0].set_ylabel("mean regret, percentage points")
        panels[-1].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--found", type=Path, default=FOUND)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/searchers.png"))
    options = parser.parse_args()
    rows = parquet.read_table(options.found).to_pylist()
    shown = [r for r in rows if (r["budget"], r["slots"]) == (options.budget, options.slots)]
    draw(shown, options.names).savefig(options.out)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
