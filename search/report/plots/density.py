"""What a picture of many trials shows in place of a dot or a line for each: how many lie where."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb

MANY = 200
"""Trials; among more, single ones cannot be told apart, and take seconds to draw."""

LEADERS = 5
"""Of many trials, those that are still drawn one by one."""

_CELLS = 48  # along each side of a shaded panel
_STEPS = 90  # along a band
_BETWEEN = 60  # columns from one coordinate to the next
_BLUR = 0.03  # of a coordinate's height, so that lines through the same options become ribbons

Array = np.ndarray[Any, np.dtype[np.float64]]


def shade(
    axes: Axes,
    xs: Sequence[float] | Array,
    ys: Sequence[float] | Array,
    colour: str,
    *,
    x_edges: Sequence[float] | Array | None = None,
    rows: int = _CELLS,
) -> None:
    """Shades where trials lie: the darker, the more.

    Args:
        axes: with their final scales and limits.
        xs: of each trial.
        ys: of each trial.
        colour: where most lie.
        x_edges: of the columns; none: some, of equal width.
        rows: number of rows.
    """
    if x_edges is None:
        x_edges = _edges(axes, "x", _CELLS)
    y_edges = _edges(axes, "y", rows)
    counts, _, _ = np.histogram2d(xs, ys, bins=(x_edges, y_edges))
    red, green, blue = to_rgb(colour)
    light = (0.85 + 0.15 * red, 0.85 + 0.15 * green, 0.85 + 0.15 * blue)
    axes.pcolormesh(
        x_edges,
        y_edges,
        np.ma.masked_equal(counts, 0).T,
        cmap=LinearSegmentedColormap.from_list("density", [light, (red, green, blue)]),
        norm=LogNorm(1, max(2.0, counts.max())),
        zorder=1,
        gid="density",
    )


def shade_lines(axes: Axes, heights: Array, colour: str) -> None:
    """Shades where lines through parallel coordinates run: the darker, the more.

    Args:
        axes: with the coordinates at x = 0, 1, ..., and their final limits.
        heights: [coordinates, lines].
        colour: where most run.
    """
    chance = np.random.default_rng(0)
    blurred = heights + chance.uniform(-_BLUR, _BLUR, heights.shape)
    steps = np.arange(_BETWEEN) / _BETWEEN
    xs = np.arange((len(heights) - 1) * _BETWEEN) / _BETWEEN
    ys = [(1 - step) * a + step * b for a, b in pairwise(blurred) for step in steps]
    edges = np.append(xs, len(heights) - 1)
    count = heights.shape[1]
    shade(axes, np.repeat(xs, count), np.concatenate(ys), colour, x_edges=edges, rows=80)


def room_for(axes: Axes, xs: Sequence[float]) -> None:
    """Sets the limits of x to what the trials have, with a little room, on the scale it has."""
    scale = axes.xaxis.get_transform()
    low, high = scale.transform(np.array([min(xs), max(xs)]))
    room = 0.04 * (high - low)
    axes.set_xlim(*scale.inverted().transform(np.array([low - room, high + room])))


def band(axes: Axes, row: float, xs: Sequence[float], colour: str) -> None:
    """Draws a row of trials as a band, which is high where many lie.

    Args:
        axes: with their final scale and limits of x.
        row: the middle of the band.
        xs: of each trial.
        colour: of the band.
    """
    edges = _edges(axes, "x", _STEPS)
    counts, _ = np.histogram(xs, bins=edges)
    smooth = np.convolve(counts, (0.25, 0.5, 0.25), mode="same")
    heights = 0.42 * smooth / smooth.max()
    middles = (edges[:-1] + edges[1:]) / 2
    axes.fill_between(
        middles,
        row - heights,
        row + heights,
        where=heights > 0,
        color=colour,
        alpha=0.45,
        linewidth=0,
        zorder=2,
        gid="density",
    )


def _edges(axes: Axes, direction: str, count: int) -> Array:
    """Edges of bins that are equally wide in the picture."""
    axis = axes.xaxis if direction == "x" else axes.yaxis
    ends = sorted(axes.get_xlim() if direction == "x" else axes.get_ylim())
    scale = axis.get_transform()
    low, high = scale.transform(np.array(ends))
    edges: Array = scale.inverted().transform(np.linspace(low, high, count + 1))
    edges[0], edges[-1] = ends  # which rounding must not leave out
    return edges
