"""The pictures of a search: how its trials learned, what they reached, and what that depends on.

Each function draws one picture from a search's record, or gives none where there is nothing to show
yet. Accuracies are those on the held-out images.
"""

import io
from collections.abc import Callable, Mapping

import matplotlib as mpl
from matplotlib.figure import Figure

from search.record.record import SearchRecord
from search.report.plots.accuracy_against_cost import accuracy_against_cost
from search.report.plots.accuracy_by_method import accuracy_by_method
from search.report.plots.accuracy_by_setting import accuracy_by_setting
from search.report.plots.importance_bars import importance
from search.report.plots.learning_curves import learning_curves
from search.report.plots.parallel_coordinates import parallel_coordinates
from search.report.plots.style import STYLE

Drawing = Callable[[SearchRecord], Figure | None]


def png(drawing: Drawing, record: SearchRecord) -> bytes | None:
    """A picture as the content of a PNG file."""
    with mpl.rc_context(dict(STYLE)):
        figure = drawing(record)
        if figure is None:
            return None
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


DRAWINGS: Mapping[str, Drawing] = {
    "1_accuracy_by_method": accuracy_by_method,
    "2_learning_curves": learning_curves,
    "3_accuracy_against_cost": accuracy_against_cost,
    "4_accuracy_by_setting": accuracy_by_setting,
    "5_importance": importance,
    "6_parallel_coordinates": parallel_coordinates,
}
"""By name of the file; the numbers put those that most people want first."""
