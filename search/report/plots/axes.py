"""Scales, ticks and labels of the pictures' axes."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from search.report.plots.style import DPI, MUTED, OTHER


def scale_accuracies(
    axes: Axes,
    direction: Literal["x", "y"],
    values: Sequence[float],
    *,
    ends: Sequence[float],
    ticks: int = 9,
) -> None:
    """Sets the scale and ticks of an axis of accuracies.

    If they lie far apart, the scale is the logarithm of the error, so that halving the error is the
    same step at 80 and at 98 percent.

    Args:
        axes: the axes.
        direction: which of its two axes.
        values: all accuracies, in percent.
        ends: the accuracies at which trials ended; the scale resolves the best of them.
        ticks: about the number of ticks.
    """
    axis = axes.xaxis if direction == "x" else axes.yaxis
    limits: Any = axes.set_xlim if direction == "x" else axes.set_ylim
    low, high = min(values), max(values)
    if high - low < 8:
        room = max(0.15, 0.08 * (high - low))
        limits(low - room, min(high + room, 100.5))
        axis.set_major_locator(MaxNLocator(ticks - 2, steps=[1, 2, 2.5, 5, 10]))
        return
    scale = log_error([*values, *ends])
    forward = np.vectorize(scale, otypes=[float])
    set_scale = axes.set_xscale if direction == "x" else axes.set_yscale
    set_scale("function", functions=(forward, lambda steps: 100 - 10 ** (-np.asarray(steps))))
    start, end = scale(low), scale(high)
    room = 0.05 * (end - start)
    limits(100 - 10 ** (room - start), 100 - 10 ** (-end - room))
    candidates = (0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5, 99.8, 99.9, 99.95, 100)
    marks: list[float] = []
    for mark in candidates:
        if start - room <= scale(mark) <= end + room and (
            not marks or scale(mark) - scale(marks[-1]) > (end - start) / ticks / 1.3
        ):
            marks.append(mark)
    axis.set_major_locator(FixedLocator(marks))
    axis.set_major_formatter(FixedFormatter([f"{mark:g}" for mark in marks]))
    axis.set_minor_locator(NullLocator())


def log_error(percents: Sequence[float]) -> Callable[[float], float]:
    """A scale of accuracies in percent on which halving the error is a step of constant length."""
    errors = [100 - value for value in percents if value < 100]
    least = min(errors, default=1.0) / 2  # stands for no error at all
    return lambda value: -math.log10(max(least, 100 - value))


def scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Makes the x axis logarithmic; a single cost is in its middle."""
    axes.set_xscale("log")
    low, high = min(costs), max(costs)
    room = max(1.25, (high / low) ** 0.15)
    axes.set_xlim(low / room, high * room)
    few_log_ticks(axes, [low, high] if low == high else [low / room, high * room])


def few_log_ticks(axes: Axes, values: Sequence[float], most: int = 5) -> None:
    """Sets a few plain numbers as ticks of the x axis, powers of ten if there are enough."""
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    wide = math.log10(high / low)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        marks = [step * 10.0**power for power in decades for step in steps]
        inside = [mark for mark in marks if low <= mark <= high]
        if len(inside) >= 3 or (len(inside) == 2 and wide > 1):
            break
    else:
        inside = [low, high] if high > 1.2 * low else [low]
    if len(inside) > most:
        inside = inside[:: math.ceil(len(inside) / most)]
    axes.xaxis.set_major_locator(FixedLocator(inside))
    axes.xaxis.set_major_formatter(FixedFormatter([short_number(mark) for mark in inside]))
    axes.xaxis.set_minor_locator(NullLocator())


def short_number(value: float) -> str:
    """A number in a few characters, like `0.316` or `1.2 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 9.999 * size or (value >= size and unit != "k"):
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def swarm(axes: Axes, values: Sequence[float]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Vertical offsets, in rows, that keep the dots of a row from covering each other."""
    places = axes.transData.transform([(value, 0.0) for value in values])
    across = abs(axes.transData.transform((0.0, 1.0))[1] - axes.transData.transform((0.0, 0.0))[1])
    diameter = 8.5 / 72 * DPI
    most = max(0, int((across / 2 - diameter / 2) / (diameter / 2)))
    offsets = np.zeros(len(values))
    taken: list[tuple[float, int]] = []
    for index in np.argsort(places[:, 0], kind="stable"):
        x = places[index, 0]
        near = {step for other, step in taken if x - other < diameter}
        steps = [0, *(sign * step for step in range(1, most + 1) for sign in (1, -1))]
        free = [step for step in steps if all(abs(step - other) >= 2 for other in near) or not near]
        step = free[0] if free else steps[len(taken) % len(steps)]
        taken.append((x, step))
        offsets[index] = step * diameter / 2 / across
    return offsets


def label_right(axes: Axes, labels: Iterable[tuple[float, str, str]]) -> None:
    """Labels values at the right end of the axes, moved apart if they would overlap.

    Args:
        axes: the axes.
        labels: value, text and colour of each label.
    """
    to_share = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        (
            (float(to_share.transform((1.0, value))[1]), text, colour)
            for value, text, colour in labels
        )
    )
    gap, low = 0.048, 0.0
    heights: list[float] = []
    for height, _, _ in placed:
        low = max(height, low)
        heights.append(low)
        low += gap
    # Labels that were pushed beyond the top move down again together.
    ceiling = 1.02
    for index in reversed(range(len(heights))):
        heights[index] = ceiling = min(heights[index], ceiling)
        ceiling -= gap
    for height, (place, text, colour) in zip(heights, placed, strict=True):
        axes.annotate(
            text,
            (1.0, place),
            xycoords="axes fraction",
            xytext=(1.025, height),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=10,
            fontweight="bold" if colour != MUTED else "normal",
            arrowprops={"arrowstyle": "-", "color": OTHER, "linewidth": 0.8, "relpos": (0, 0.5)},
        )


def note_on_top(
    axes: Axes, value: float, text: str, colour: str, side: Literal["left", "right"]
) -> None:
    """Labels a vertical line at its top."""
    axes.annotate(
        text,
        (value, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4 if side == "left" else -4, 3),
        textcoords="offset points",
        ha=side,
        fontsize=9.5,
        color=colour,
    )
