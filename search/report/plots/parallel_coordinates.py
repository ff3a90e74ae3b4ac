"""Picture: the settings of every trial, and its accuracy or what else is ranked by, in parallel
coordinates."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from search.experiment.space.point import is_number, is_shared, option_in_words, short_name
from search.experiment.space.space import is_logarithmic
from search.record.record import SearchRecord, TrialRecord
from search.record.wording import METRIC_WORDS
from search.report.plots.axes import log_error, short_number
from search.report.plots.density import MANY, shade_lines
from search.report.plots.panels import has_setting, number_of, panels_by_methods, setting_of
from search.report.plots.style import (
    HALO,
    MUTED,
    OTHER,
    SHADES,
    counted,
    methods_in_words,
    new_figure,
    published_numbers,
    score_label,
    scores,
)

# Where there are many trials.
_LINES = 12
_FULL_PANEL = 40  # trials

_NAMES_IN_A_ROW = 6  # of settings; of more, every second is a line below
_WITHOUT = 0.15  # of an axis, for trials that do not have its setting


def parallel_coordinates(record: SearchRecord) -> Figure | None:
    """For each set of methods, a line for every trial through its settings to its accuracy.

    Of many trials, the best and the published ones are lines, and all together a shade.
    """
    panels = panels_by_methods(record, fewest_fields=2)
    if not panels:
        return None
    many = sum(len(trials) for trials, _ in panels.values()) > MANY
    words = METRIC_WORDS[record.metric]
    figure = new_figure(
        1.2 + 2.5 * len(panels),
        f"Settings and {words}",
        f"from settings to {words}, the darker, the more trials; lines are the best {_LINES}; "
        "dashed is the published setting"
        if many
        else f"each line is a trial, from its settings to its {words}: the darker, the better; "
        "dashed is the published setting",
    )
    published = published_numbers(record)
    for number, (methods, (trials, fields)) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        columns = [_Coordinate(record, name, trials) for name in fields]
        last = _Coordinate.of_accuracies(scores(trials))
        heights = np.array([*(column.heights for column in columns), last.heights])
        full = many and len(trials) > _FULL_PANEL
        shown = min(_LINES, len(trials)) if full else len(trials)
        # Upon a shade, the lighter shades could not be seen.
        order = Normalize(-shown if full else 0, max(1, shown - 1))
        for place, trial in reversed(list(enumerate(trials))):
            known = trial.number in published
            if full and place >= _LINES and not known:
                continue
            axes.plot(
                range(len(heights)),
                heights[:, place],
                color=SHADES(order(max(0, shown - 1 - place))),
                linewidth=2.2 if place == 0 else 1.2,
                linestyle=(0, (4, 2)) if known else "-",
                gid="trial",
                zorder=3 if place == 0 else 2,
            )
        for place, column in enumerate((*columns, last)):
            axes.axvline(place, color=OTHER, linewidth=1, zorder=1)
            for height, text in column.ticks:
                axes.annotate(
                    text,
                    (place, height),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                    color=MUTED,
                    path_effects=HALO,
                    zorder=4,
                )
        names = [
            short_name(name) if is_shared(name) else name.removeprefix(f"{methods}.")
            for name in fields
        ]
        if len(names) > _NAMES_IN_A_ROW:
            names = [f"\n{name}" if place % 2 else name for place, name in enumerate(names)]
        axes.set_xticks(range(len(heights)), [*names, score_label(record, narrow=True)])
        axes.set(xlim=(-0.08, len(heights) - 0.7), ylim=(-0.08, 1.08))
        if full:
            shade_lines(axes, heights, OTHER)
        axes.set_title(
            f"{methods_in_words(methods)}, {counted(len(trials), 'trial')}",
            loc="left",
            fontsize=11,
            fontweight="bold",
        )
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


class _Coordinate:
    """A vertical axis: the height of each trial on it, from 0 to 1, and its ticks."""

    def __init__(self, record: SearchRecord, name: str, trials: Sequence[TrialRecord]) -> None:
        having = [trial for trial in trials if has_setting(trial, name)]
        values = [setting_of(trial, name) for trial in having]
        self.ticks: list[tuple[float, str]]
        if all(map(is_number, values)):
            log = is_logarithmic(record.experiment, name)
            numbers = [number_of(trial, name) for trial in having]
            self._place(numbers, math.log if log else float, short_number)
        else:
            options = sorted(map(option_in_words, set(values)))
            places = {
                option: (number + 0.5) / len(options) for number, option in enumerate(options)
            }
            self.heights = [places[option_in_words(value)] for value in values]
            self.ticks = [(height, option) for option, height in places.items()]
        if len(having) < len(trials):
            self._leave_room_for(trials, having)

    @classmethod
    def of_accuracies(cls, values: Sequence[float]) -> "_Coordinate":
        made = cls.__new__(cls)
        made._place(values, log_error(values), "{:.2f}".format)
        return made

    def _leave_room_for(self, trials: Sequence[TrialRecord], having: Sequence[TrialRecord]) -> None:
        """Moves the trials that have the setting up, and puts the others below them."""
        share = 1 - _WITHOUT
        heights = dict(zip((trial.number for trial in having), self.heights, strict=True))
        self.heights = [
            _WITHOUT + share * heights[trial.number] if trial.number in heights else 0.0
            for trial in trials
        ]
        moved = [(_WITHOUT + share * height, text) for height, text in self.ticks]
        self.ticks = [(0.0, "without"), *moved]

    def _place(
        self,
        values: Sequence[float],
        scale: Callable[[float], float],
        words: Callable[[float], str],
    ) -> None:
        low, high = scale(min(values)), scale(max(values))
        self.heights = [(scale(value) - low) / (high - low or 1.0) for value in values]
        self.ticks = [(0.0, words(min(values))), (1.0, words(max(values)))]
