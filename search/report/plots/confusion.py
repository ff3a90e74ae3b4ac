"""Picture: the confusion matrix of a student on the test split, beside its model card."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from kdcore.training.evaluation import Evaluation
from search.report.plots.drawings import png_of
from search.report.plots.style import INK, SHADES, new_figure

# Cells with numbers, and names of all classes, as long as they are large enough to be read.
_MOST_WITH_NUMBERS = 15
_MOST_WITH_NAMES = 40
_LONGEST_NAME = 18


def save_confusion(found: Evaluation, class_names: Sequence[str], file: Path) -> None:
    """Draws the picture into a PNG file."""
    file.write_bytes(png_of(lambda: confusion(found, class_names)) or b"")


def confusion(found: Evaluation, class_names: Sequence[str]) -> Figure:
    """Shares of each class's images by what they are taken for.

    Args:
        found: on the test split.
        class_names: in the order of the logits.
    """
    counts = found.confusion.double()
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    number = len(class_names)
    figure = new_figure(
        8.6,
        "What is taken for what",
        f"{len(found.labels):,} test images; of each class, the share in percent by prediction. "
        f"{_worst(found, class_names)}",
    )
    axes = figure.add_subplot()
    # Mistakes are few: on a linear scale their shades would all be the lightest.
    norm = PowerNorm(0.5, 0, 100)
    cells = shares.where(counts > 0, float("nan")).numpy()
    shown = axes.imshow(cells, cmap=SHADES, norm=norm, interpolation="nearest")
    axes.grid(visible=False)
    axes.set(xlabel="taken for", ylabel="is")
    names = [_short(name) for name in class_names]
    if number <= _MOST_WITH_NAMES:
        places = range(number)
    else:
        places = range(0, number, -(-number // _MOST_WITH_NAMES))
    size = 10 if number <= _MOST_WITH_NUMBERS else 7.5
    axes.set_xticks(places, [names[k] for k in places], rotation=90, fontsize=size)
    axes.set_yticks(places, [names[k] for k in places], fontsize=size)
    axes.tick_params(length=0)
    if number <= _MOST_WITH_NUMBERS:
        for row, column in counts.nonzero().tolist():
            share = shares[row, column].item()
            text = f"{share:.0f}" if share >= 0.95 else "<1"
            colour = "white" if share > 35 else INK
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
    figure.colorbar(shown, ax=axes, label="share of the class, %", shrink=0.7)
    return figure


def _worst(found: Evaluation, class_names: Sequence[str]) -> str:
    """The most frequent mistake, in words."""
    mistakes = found.confusion.clone()
    mistakes.fill_diagonal_(0)
    row, column = divmod(int(mistakes.argmax()), len(class_names))
    count = int(mistakes[row, column])
    if not count:
        return "There are no mistakes."
    return f"Most often: {_short(class_names[row])} for {_short(class_names[column])}, {count:,}."


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
