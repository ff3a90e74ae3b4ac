"""Picture: what a student takes for what, of a search's best student and beside a model card."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from search.record.class_results import ALL_CLASSES, StudentClasses
from search.record.record import SearchRecord
from search.record.wording import shortened
from search.report.plots.style import INK, MUTED, SHADES, new_figure

if TYPE_CHECKING:
    from kdcore.training.evaluation import Evaluation

# Cells with numbers, and names of all classes, as long as they are large enough to be read.
_MOST_WITH_NUMBERS = 15
_MOST_WITH_NAMES = 40
_LONGEST_NAME = 18
_LONGEST_IN_SUBTITLE = 14
_LONGEST_IN_PAIR = 24

_Counts = np.ndarray[Any, np.dtype[np.int64]]
"""[K, K]: images by class and, along the second dimension, by prediction."""


def confusion(record: SearchRecord) -> Figure | None:
    """What the best student takes for what, on the held-out images; of many classes, what it
    mistakes most often."""
    found = record.by_class
    if found is None:
        return None
    if found.num_classes > ALL_CLASSES:
        return _most_frequent(found) if found.mistakes else None
    counts = np.zeros((found.num_classes, found.num_classes), np.int64)
    for row, column, count in found.mistakes:
        counts[row, column] = count
    supports = [each.support for each in found.classes]
    np.fill_diagonal(counts, supports - counts.sum(1))
    names = [each.name for each in found.classes]
    return _matrix(counts, names, f"What {found} takes for what", "held-out")


def confusion_matrix(found: "Evaluation", class_names: Sequence[str]) -> Figure:
    """Shares of each class's images by what they are taken for.

    Args:
        found: on the test split.
        class_names: in the order of the logits.
    """
    return _matrix(found.confusion.numpy(), class_names, "What is taken for what", "test")


def _matrix(counts: _Counts, class_names: Sequence[str], title: str, split: str) -> Figure:
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(min=1)
    number = len(class_names)
    figure = new_figure(
        8.6,
        title,
        f"{counts.sum():,} {split} images; of each class, the share in percent by prediction. "
        f"{_most_often(counts, class_names)}",
    )
    axes = figure.add_subplot()
    # Mistakes are few: on a linear scale their shades would all be the lightest.
    norm = PowerNorm(0.5, 0, 100)
    cells = np.where(counts > 0, shares, np.nan)
    shown = axes.imshow(cells, cmap=SHADES, norm=norm, interpolation="nearest")
    axes.grid(visible=False)
    axes.set(xlabel="taken for", ylabel="is")
    names = [shortened(name, _LONGEST_NAME) for name in class_names]
    if number <= _MOST_WITH_NAMES:
        places = range(number)
    else:
        places = range(0, number, -(-number // _MOST_WITH_NAMES))
    size = 10 if number <= _MOST_WITH_NUMBERS else 7.5
    axes.set_xticks(places, [names[k] for k in places], rotation=90, fontsize=size)
    axes.set_yticks(places, [names[k] for k in places], fontsize=size)
    axes.tick_params(length=0)
    if number <= _MOST_WITH_NUMBERS:
        for row, column in np.argwhere(counts):
            share = shares[row, column]
            text = f"{share:.0f}" if share >= 0.95 else "<1"
            colour = "white" if share > 35 else INK
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
    figure.colorbar(shown, ax=axes, label="share of the class, %", shrink=0.7)
    return figure


def _most_frequent(found: StudentClasses) -> Figure:
    """A bar for each of the most frequent mistakes."""
    figure = new_figure(
        1.9 + 0.3 * len(found.mistakes),
        f"The most frequent mistakes of {found}",
        f"how many images of a class are taken for another; {found.images:,} held-out images of "
        f"{found.num_classes:,} classes",
    )
    axes = figure.add_subplot()
    names = [shortened(each.name, _LONGEST_IN_PAIR) for each in found.classes]
    words = [f"{names[row]} for {names[column]}" for row, column, _ in found.mistakes]
    counts = [count for _, _, count in found.mistakes]
    axes.barh(range(len(counts)), counts, 0.72, color=MUTED, gid="mistake")
    for place, (count, (row, _, _)) in enumerate(zip(counts, found.mistakes, strict=True)):
        of = f" {count:,} of {found.classes[row].support:,}"
        axes.text(count, place, of, va="center", fontsize=10)
    axes.set_yticks(range(len(words)), words, fontsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(ylim=(len(words) - 0.5, -0.5), xlim=(0, 1.15 * max(counts)))
    axes.set_xlabel("held-out images")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    return figure


def _most_often(counts: _Counts, class_names: Sequence[str]) -> str:
    """The most frequent mistake, in words."""
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    row, column = divmod(int(mistakes.argmax()), len(class_names))
    count = int(mistakes[row, column])
    if not count:
        return "There are no mistakes."
    is_one, other = (shortened(class_names[k], _LONGEST_IN_SUBTITLE) for k in (row, column))
    return f"Most often: {is_one} for {other}, {count:,}."
