"""All pictures of a search by name, as figures and as PNG files."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import style
from matplotlib.figure import Figure

from kdcore.errors import did_you_mean
from search.errors import SearchError
from search.record.record import SearchRecord
from search.report.plots.accuracy_against_cost import accuracy_against_cost
from search.report.plots.accuracy_by_method import accuracy_by_method
from search.report.plots.accuracy_by_setting import accuracy_by_setting
from search.report.plots.accuracy_by_teacher import accuracy_by_teacher
from search.report.plots.confusion import confusion, confusion_matrix
from search.report.plots.importance_bars import importance
from search.report.plots.learning_curves import learning_curves
from search.report.plots.parallel_coordinates import parallel_coordinates
from search.report.plots.style import STYLE

if TYPE_CHECKING:
    from kdcore.training.evaluation import Evaluation

Drawing = Callable[[SearchRecord], Figure | None]

DRAWINGS: Mapping[str, Drawing] = {
    "accuracy_by_method": accuracy_by_method,
    "learning_curves": learning_curves,
    "accuracy_against_cost": accuracy_against_cost,
    "accuracy_by_setting": accuracy_by_setting,
    "importance": importance,
    "parallel_coordinates": parallel_coordinates,
    "confusion": confusion,
    "accuracy_by_teacher": accuracy_by_teacher,
}
"""The pictures that most people want come first."""


def draw(name: str, record: SearchRecord) -> Figure | None:
    """Draws a picture in the house style, whatever the user's settings of matplotlib are.

    Args:
        name: `accuracy_by_method`, `learning_curves`, `accuracy_against_cost`,
            `accuracy_by_setting`, `importance`, `parallel_coordinates`, `confusion` or
            `accuracy_by_teacher`.
        record: the search.

    Returns:
        The figure, which belongs to no window; None if there is nothing to show yet.

    Raises:
        SearchError: there is no such picture.
    """
    if name not in DRAWINGS:
        hint = did_you_mean(name, DRAWINGS)
        raise SearchError(f"no picture {name!r}{hint} There are {', '.join(DRAWINGS)}")
    with _house_style():
        figure = DRAWINGS[name](record)
        if figure is not None:
            figure.draw_without_rendering()  # ticks are made now, and read their style then
    return figure


def png(drawing: Drawing, record: SearchRecord) -> bytes | None:
    """A picture as the content of a PNG file."""
    return png_of(lambda: drawing(record))


def png_of(drawn: Callable[[], Figure | None]) -> bytes | None:
    """What a function draws in the house style, as the content of a PNG file; none if nothing."""
    with _house_style():
        figure = drawn()
        if figure is None:
            return None
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def save_confusion(found: "Evaluation", class_names: Sequence[str], file: Path) -> None:
    """Draws the confusion matrix of the test split into a PNG file."""
    file.write_bytes(png_of(lambda: confusion_matrix(found, class_names)) or b"")


@contextmanager
def _house_style() -> Iterator[None]:
    """Matplotlib's defaults with the house style, until the end of the block."""
    with style.context(["default", dict(STYLE)]):
        yield
