"""Picture: accuracy, or what else is ranked by, against each numeric setting of each method."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from search.experiment.space.point import short_name
from search.experiment.space.space import is_logarithmic
from search.record.record import SearchRecord
from search.record.wording import METRIC_WORDS
from search.report.plots.axes import few_log_ticks, scale_accuracies
from search.report.plots.density import LEADERS, MANY, room_for, shade
from search.report.plots.panels import has_setting, number_of, panels_by_methods, setting_of
from search.report.plots.style import (
    counted,
    dot_of,
    method_colours,
    methods_in_words,
    new_figure,
    published_numbers,
    score_label,
    scores,
)

_FULL_PANEL = 40  # trials, where there are many
_MOST_COLUMNS = 5


def accuracy_by_setting(record: SearchRecord) -> Figure | None:
    """Accuracy against each numeric setting of each method; settings searched on a logarithmic
    scale are shown on one. Of many trials, the best and the published ones are dots, and all
    together a shade."""
    panels = panels_by_methods(record, fewest_fields=1, numeric=True)
    if not panels:
        return None
    columns = min(_MOST_COLUMNS, max(len(fields) for _, fields in panels.values()))
    rows = sum(math.ceil(len(fields) / columns) for _, fields in panels.values())
    shown = [trial for trials, _ in panels.values() for trial in trials]
    many = len(shown) > MANY
    words = METRIC_WORDS[record.metric]
    figure = new_figure(
        1.3 + 2.3 * rows,
        f"{words.capitalize()} against each numeric setting",
        "the darker, the more trials; dots are the best, a diamond is the published setting"
        if many
        else "each dot is a trial, filled if it finished and hollow if not; "
        "a diamond is the published setting",
    )
    colours, published = method_colours(record), published_numbers(record)
    values = scores(shown)
    finished = [v for v, trial in zip(values, shown, strict=True) if trial.state == "finished"]
    label = "held-out, %" if record.metric == "accuracy" else score_label(record, narrow=True)
    grid = figure.add_gridspec(rows, columns)
    above = 0
    for methods, (of_methods, fields) in panels.items():
        for number, name in enumerate(fields):
            row, column = divmod(number, columns)
            axes = figure.add_subplot(grid[above + row, column])
            trials = [trial for trial in of_methods if has_setting(trial, name)]
            full = many and len(trials) > _FULL_PANEL
            for place, trial in enumerate(trials):
                known = trial.number in published
                if full and place >= LEADERS and not known:
                    continue
                axes.scatter(
                    number_of(trial, name),
                    100 * (trial.score or 0.0),
                    s=52 if known else 34,
                    linewidth=1.2,
                    **dot_of(trial, colours[methods], published=known),
                )
            scale_accuracies(axes, "y", values, ends=finished or values, ticks=5)
            if is_logarithmic(record.experiment, name):
                axes.set_xscale("log")
                tried = [number_of(trial, name) for trial in trials]
                few_log_ticks(axes, tried, 5 if columns < _MOST_COLUMNS else 3)
            else:
                values_of = [setting_of(trial, name) for trial in trials]
                whole = all(isinstance(value, int) for value in values_of)
                axes.xaxis.set_major_locator(MaxNLocator(4 if columns < 5 else 2, integer=whole))
            if full:
                xs = [number_of(trial, name) for trial in trials]
                room_for(axes, xs)
                shade(axes, xs, scores(trials), colours[methods])
            axes.set_xlabel(name if columns == 1 else short_name(name))
            if column == 0:
                axes.set_ylabel(label)
            else:
                axes.tick_params(labelleft=False)
            if number == 0:
                axes.set_title(
                    f"{methods_in_words(methods)}, {counted(len(of_methods), 'trial')}",
                    loc="left",
                    fontsize=11,
                    fontweight="bold",
                )
        above += math.ceil(len(fields) / columns)
    return figure
