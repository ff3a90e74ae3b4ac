"""The pictures of a search: how its trials learned, what they reached, and what that depends on.

Each function draws one picture from a search's record, or gives none where there is nothing to show
yet. Accuracies are those on the held-out images.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from search.experiment import CONTROL, Option
from search.importance import importances
from search.leaderboard import percent, rank
from search.record import SearchRecord, TrialRecord
from search.rungs import Rungs
from search.space import is_logarithmic, is_number, plain_name, published_trials

_PALETTE = (
    *("#3b6fb6", "#d9822b", "#3a9a6d", "#8a62a8", "#c4504f"),
    *("#3aa6b0", "#8f6b4a", "#cf7fae", "#8f9a3a", "#64748b"),
)
_INK, _MUTED, _FAINT, _OTHER = "#2b2f36", "#7a808a", "#e6e8ec", "#b4b9c2"
_SHADES = LinearSegmentedColormap.from_list("shades", ["#d5dbe5", "#7fa3d1", "#2f5d9e", "#173562"])

_STYLE: Mapping[Any, Any] = {
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _OTHER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
}
_WIDTH = 10.0  # inches
# MLflow's pages show a picture as large as it is: 860 pixels leave room beside it on a laptop, and
# its letters are as high as theirs.
_DPI = 86
_HEAD = 0.85  # inches of title and subtitle

_HALO = (withStroke(linewidth=3, foreground="white"),)

# Pictures with a panel for each method show so many of them, the best ones.
_MOST_PANELS = 8
_FEWEST_TRIALS = 3

Drawing = Callable[[SearchRecord], Figure | None]


def png(drawing: Drawing, record: SearchRecord) -> bytes | None:
    """A picture as the content of a PNG file."""
    with mpl.rc_context(dict(_STYLE)):
        figure = drawing(record)
        if figure is None:
            return None
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def learning_curves(record: SearchRecord) -> Figure | None:
    """The best accuracy so far of each trial after each epoch, with the ends by early stopping."""
    trials = [trial for trial in reversed(rank(record.trials)) if trial.accuracies]
    if not trials:
        return None
    best, control = trials[-1], record.control_of(trials[-1].student)
    stopped = sum(trial.state == "stopped" for trial in trials)
    figure = _figure(
        5.8,
        f"Learning curves of {_count(len(trials), 'trial')}",
        "best held-out accuracy so far"
        + (f"; a cross ends each of the {stopped} that were stopped early" if stopped else ""),
    )
    axes = figure.add_subplot()
    colours = method_colours(record)
    curves = {trial.number: _percents(accumulate(trial.accuracies, max)) for trial in trials}
    for trial in trials:
        curve = curves[trial.number]
        leads = trial is best or trial is control
        axes.plot(
            range(1, len(curve) + 1),
            curve,
            color=colours[trial.methods],
            linewidth=2.4 if leads else 1.1,
            alpha=1.0 if leads else 0.6,
            gid="curve",
            solid_capstyle="round",
            marker="o" if len(curve) == 1 else None,
            markersize=3,
        )
        if trial.state == "stopped":
            axes.plot(
                *(len(curve), curve[-1]), "x", color=colours[trial.methods], markersize=6, gid="cut"
            )
    budget = max(trial.epochs for trial in trials)
    asha = record.experiment.search.asha
    rungs = Rungs(asha, epochs=record.experiment.training.epochs).results if asha else {}
    for epoch in rungs:
        axes.axvline(epoch, color=_OTHER, linewidth=1, linestyle=(0, (1, 2)), zorder=0, gid="rung")
    shown = [value for curve in curves.values() for value in curve]
    teacher = _teacher_accuracy(record)
    _scale_accuracies(axes, "y", [*shown, *teacher], ends=[curve[-1] for curve in curves.values()])
    axes.set(xlabel="epoch", ylabel="held-out accuracy, %", xlim=(1, max(2, budget)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    for number, epoch in enumerate(rungs):
        words = " rung of early stopping" if number == 0 else " rung"
        axes.annotate(
            words,
            (epoch, 0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=8.5,
            color=_MUTED,
            path_effects=_HALO,
        )
    labels = [(value, f"teacher {value:.2f}", _MUTED) for value in teacher]
    named: set[str] = set()
    for trial in reversed(trials):  # the best of each method
        if trial.methods not in named and len(curves[trial.number]) == budget:
            text = f"{_method_words(trial)} {curves[trial.number][-1]:.2f}"
            labels.append((curves[trial.number][-1], text, colours[trial.methods]))
            named.add(trial.methods)
    for value in teacher:
        axes.axhline(value, color=_MUTED, linewidth=1.4, linestyle=(0, (5, 3)), gid="teacher")
    _label_right(axes, labels)
    rest = [name for name in colours if name not in named and name in {t.methods for t in trials}]
    if rest:
        handles = [Line2D([], [], color=colours[name], label=_plain(name)) for name in rest]
        axes.legend(
            handles=handles[:12], title="not finished", loc="lower right", ncols=1 + len(rest) // 6
        )
    return figure


def accuracy_by_method(record: SearchRecord) -> Figure | None:
    """Each trial a dot in the row of its methods; the best row on top."""
    trials = [trial for trial in rank(record.trials) if trial.heldout_accuracy is not None]
    if not trials:
        return None
    rows = list(dict.fromkeys(trial.methods for trial in trials))
    height = 1.9 + 0.42 * max(3, len(rows))
    figure = _figure(
        height,
        f"{_plain(rows[0])} leads with {percent(trials[0].heldout_accuracy)} %",
        "each trial is a dot: filled where it finished, hollow where it did not; "
        "a diamond is the published setting",
    )
    axes = figure.add_subplot()
    teacher, control = _teacher_accuracy(record), record.control_of(trials[0].student)
    values = _percents(trial.heldout_accuracy or 0.0 for trial in trials)
    finished = [v for v, trial in zip(values, trials, strict=True) if trial.state == "finished"]
    _scale_accuracies(axes, "x", [*values, *teacher], ends=finished or values)
    axes.set(xlabel="held-out accuracy, %", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [_plain(row) for row in rows])
    axes.tick_params(axis="y", length=0)
    for value in teacher:
        axes.axvline(value, color=_MUTED, linewidth=1.4, linestyle=(0, (5, 3)), gid="teacher")
        _note_on_top(axes, value, f"teacher {value:.2f}", _MUTED, "left")
    if control is not None and control.heldout_accuracy is not None:
        value = 100 * control.heldout_accuracy
        axes.axvline(value, color=_INK, linewidth=1.2, gid="control")
        below = not teacher or value < teacher[0]
        owner = "" if len(record.experiment.students) == 1 else f"{control.student}'s "
        words = f"{owner}control {value:.2f}"
        _note_on_top(axes, value, words, _INK, "right" if below else "left")
    colours, published = method_colours(record), published_trials(record.experiment)
    figure.draw_without_rendering()  # the swarm needs the final size of the axes
    for row, methods in enumerate(rows):
        group = [(v, t) for v, t in zip(values, trials, strict=True) if t.methods == methods]
        heights = row + _swarm(axes, [value for value, _ in group])
        for (value, trial), y in zip(group, heights, strict=True):
            known = trial.number in published
            axes.scatter(
                value,
                y,
                s=60 if known else 36,
                marker="D" if known else "o",
                facecolor=colours[methods] if trial.state == "finished" else "white",
                edgecolor=_INK if known else colours[methods],
                linewidth=1.3,
                zorder=4 if known else 3,
                gid="published" if known else "trial",
            )
    return figure


def accuracy_against_cost(record: SearchRecord) -> Figure | None:
    """Accuracy of the finished trials against their students' parameters and latency, with the
    students that no other beats in both."""
    trials = [
        trial
        for trial in rank(record.trials)
        if trial.state == "finished" and trial.student in record.student_costs
    ]
    if not trials:
        return None
    best = {trial.student: trial for trial in reversed(trials)}
    figure = _figure(
        5.4,
        f"What accuracy costs, with {_count(len(best), 'student')}",
        "each finished trial is a dot; the line joins the students that none beats in both",
    )
    colours, teacher = method_colours(record), _teacher_accuracy(record)
    costs: tuple[tuple[str, str, Callable[[TrialRecord], float]], ...] = (
        ("parameters", "parameters", lambda t: record.student_costs[t.student].parameters),
        (
            "latency_ms",
            "milliseconds for one image",
            lambda t: record.student_costs[t.student].latency_ms,
        ),
    )
    values = _percents(trial.heldout_accuracy or 0.0 for trial in trials)
    for panel, (name, words, cost) in enumerate(costs, start=1):
        axes = figure.add_subplot(1, 2, panel)
        xs = [cost(trial) for trial in trials]
        axes.scatter(
            xs,
            values,
            s=34,
            color=[colours[trial.methods] for trial in trials],
            edgecolor="white",
            linewidth=0.6,
            alpha=0.75,
            gid="trial",
            zorder=2,
        )
        _scale_accuracies(axes, "y", [*values, *teacher], ends=values)
        _scale_costs(axes, xs)
        leaders = [(cost(trial), 100 * (trial.heldout_accuracy or 0)) for trial in best.values()]
        front = [leaders[index] for index in pareto(leaders)]
        front_costs, front_accuracies = zip(*front, strict=True)
        axes.plot(front_costs, front_accuracies, color=_INK, linewidth=1.2, zorder=3)
        axes.scatter(
            front_costs,
            front_accuracies,
            s=90,
            facecolor="none",
            edgecolor=_INK,
            linewidth=1.6,
            zorder=4,
            gid=f"pareto {name}",
        )
        for student, (x, y) in zip(best, leaders, strict=True):
            above = (x, y) in front
            axes.annotate(
                student,
                (x, y),
                xytext=(0, 9 if above else -9),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=9.5,
                path_effects=_HALO,
                zorder=5,
            )
        for value in teacher:
            axes.axhline(value, color=_MUTED, linewidth=1.4, linestyle=(0, (5, 3)))
            axes.annotate(
                f"teacher {value:.2f}",
                (0, value),
                xycoords=axes.get_yaxis_transform(),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=9,
                color=_MUTED,
                path_effects=_HALO,
            )
        axes.set(xlabel=words, ylabel="held-out accuracy, %" if panel == 1 else "")
    names = [name for name in colours if name in {trial.methods for trial in trials}]
    handles = [
        Line2D([], [], linestyle="", marker="o", color=colours[name], label=_plain(name))
        for name in names[:10]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    return figure


def importance(record: SearchRecord) -> Figure | None:
    """What the accuracy depends on, over all trials and within each method."""
    groups = importances(record)[:_MOST_PANELS]
    if not groups:
        return None
    bars = sum(len(group.shares) for group in groups)
    figure = _figure(
        1.7 + 0.34 * (bars + 1.5 * len(groups)),
        "What the accuracy depends on",
        f"share of its variance that a setting explains (fANOVA), at epoch {groups[0].epoch}, "
        "which all these trials reached",
    )
    axes = figure.add_subplot()
    colours = method_colours(record)
    position, ticks = 0.0, []
    for group in groups:
        axes.text(
            *(0.0, position),
            f" {_plain(group.group)}, {group.trials} trials",
            fontweight="bold",
            va="center",
        )
        for name, share in group.shares.items():
            position += 1
            colour = colours.get(group.group, _MUTED)
            axes.barh(position, 100 * share, 0.72, color=colour, gid="share")
            axes.text(100 * share + 1, position, f"{100 * share:.0f} %", va="center", fontsize=10)
            ticks.append((position, name.removeprefix(f"{group.group}.")))
        position += 1.5
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set(ylim=(position - 0.8, -0.7), xlim=(0, 108), xlabel="share of the variance, %")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    return figure


def parallel_coordinates(record: SearchRecord) -> Figure | None:
    """Every trial a line through its settings to its accuracy, for each method."""
    panels = _panels(record, fewest_fields=2)
    if not panels:
        return None
    figure = _figure(
        1.2 + 2.5 * len(panels),
        "Settings and what they gave",
        "a line is a trial, from its settings to its accuracy; the darker, the better; "
        "dashed is the published setting",
    )
    published = published_trials(record.experiment)
    for number, (methods, (trials, fields)) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        accuracies = _percents(trial.heldout_accuracy or 0.0 for trial in trials)
        columns = [_Coordinate(record, name, trials) for name in fields]
        last = _Coordinate.of_accuracies(accuracies)
        heights = np.array([*(column.heights for column in columns), last.heights])
        order = Normalize(0, max(1, len(trials) - 1))
        for place, trial in reversed(list(enumerate(trials))):
            known = trial.number in published
            axes.plot(
                range(len(heights)),
                heights[:, place],
                color=_SHADES(order(len(trials) - 1 - place)),
                linewidth=2.2 if place == 0 else 1.2,
                linestyle=(0, (4, 2)) if known else "-",
                gid="trial",
                zorder=3 if place == 0 else 2,
            )
        for place, column in enumerate((*columns, last)):
            axes.axvline(place, color=_OTHER, linewidth=1, zorder=1)
            for height, text in column.ticks:
                axes.annotate(
                    text,
                    (place, height),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                    color=_MUTED,
                    path_effects=_HALO,
                    zorder=4,
                )
        names = [name.removeprefix(f"{methods}.") for name in fields]
        axes.set_xticks(range(len(heights)), [*names, "held-out accuracy, %"])
        axes.set(xlim=(-0.08, len(heights) - 0.7), ylim=(-0.08, 1.08))
        axes.set_title(
            f"{_plain(methods)}, {len(trials)} trials", loc="left", fontsize=11, fontweight="bold"
        )
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def accuracy_by_setting(record: SearchRecord) -> Figure | None:
    """Accuracy against each numeric setting of each method, on the scale that it is searched on."""
    panels = _panels(record, fewest_fields=1, numeric=True)
    if not panels:
        return None
    columns = max(len(fields) for _, fields in panels.values())
    figure = _figure(
        1.3 + 2.3 * len(panels),
        "Accuracy against weight, temperature and the other numbers",
        "each trial is a dot: filled where it finished, hollow where it did not; "
        "a diamond is the published setting",
    )
    colours, published = method_colours(record), published_trials(record.experiment)
    shown = [trial for trials, _ in panels.values() for trial in trials]
    values = _percents(trial.heldout_accuracy or 0.0 for trial in shown)
    finished = [v for v, trial in zip(values, shown, strict=True) if trial.state == "finished"]
    grid = figure.add_gridspec(len(panels), columns)
    for row, (methods, (trials, fields)) in enumerate(panels.items()):
        for column, name in enumerate(fields):
            axes = figure.add_subplot(grid[row, column])
            for trial in trials:
                known = trial.number in published
                axes.scatter(
                    float(_setting(trial, name)),
                    100 * (trial.heldout_accuracy or 0.0),
                    s=52 if known else 34,
                    marker="D" if known else "o",
                    facecolor=colours[methods] if trial.state == "finished" else "white",
                    edgecolor=_INK if known else colours[methods],
                    linewidth=1.2,
                    zorder=4 if known else 3,
                    gid="published" if known else "trial",
                )
            _scale_accuracies(axes, "y", values, ends=finished or values, ticks=5)
            if is_logarithmic(record.experiment, name):
                axes.set_xscale("log")
                _few_log_ticks(axes, [float(_setting(trial, name)) for trial in trials])
            else:
                numbers = [_setting(trial, name) for trial in trials]
                whole = all(isinstance(number, int) for number in numbers)
                axes.xaxis.set_major_locator(MaxNLocator(4 if columns < 5 else 2, integer=whole))
            axes.set_xlabel(name if "." in name and columns == 1 else name.rpartition(".")[2])
            if column == 0:
                axes.set_ylabel("held-out, %")
                axes.set_title(
                    f"{_plain(methods)}, {_count(len(trials), 'trial')}",
                    loc="left",
                    fontsize=11,
                    fontweight="bold",
                )
            else:
                axes.tick_params(labelleft=False)
    return figure


DRAWINGS: Mapping[str, Drawing] = {
    "1_accuracy_by_method": accuracy_by_method,
    "2_learning_curves": learning_curves,
    "3_accuracy_against_cost": accuracy_against_cost,
    "4_accuracy_by_setting": accuracy_by_setting,
    "5_importance": importance,
    "6_parallel_coordinates": parallel_coordinates,
}
"""By name of the file; the numbers put those that most people want first."""


def method_colours(record: SearchRecord) -> dict[str, str]:
    """A colour for each combination of methods, the same in all pictures. Where there are more than
    colours, the best have them, and the rest are gray."""
    ranked = list(dict.fromkeys(trial.methods for trial in rank(record.trials)))
    names = [name for name in ranked if name != CONTROL]
    if len(names) <= len(_PALETTE):  # then no colour changes while the search runs
        started = [trial.methods for trial in record.trials]
        names.sort(key=started.index)
    colours = dict.fromkeys(names, _OTHER)
    colours |= dict(zip(names, _PALETTE, strict=False))
    return {name: _INK if name == CONTROL else colours[name] for name in ranked}


def pareto(costs_and_accuracies: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of those that no other beats: none is cheaper and at least as accurate, nor more
    accurate at equal cost; the cheapest first."""
    order = sorted(
        range(len(costs_and_accuracies)),
        key=lambda index: (costs_and_accuracies[index][0], -costs_and_accuracies[index][1]),
    )
    front: list[int] = []
    for index in order:
        if not front or costs_and_accuracies[index][1] > costs_and_accuracies[front[-1]][1]:
            front.append(index)
    return front


class _Coordinate:
    """A vertical axis of parallel coordinates: a height from 0 to 1 for each trial, and ticks."""

    def __init__(self, record: SearchRecord, name: str, trials: Sequence[TrialRecord]) -> None:
        values = [_setting(trial, name) for trial in trials]
        self.ticks: list[tuple[float, str]]
        if all(map(is_number, values)):
            log = is_logarithmic(record.experiment, name)
            numbers = [float(value) for value in values]
            self._place(numbers, math.log if log else float, _short_number)
        else:
            options = sorted({str(value) for value in values})
            places = {
                option: (number + 0.5) / len(options) for number, option in enumerate(options)
            }
            self.heights = [places[str(value)] for value in values]
            self.ticks = [(height, option) for option, height in places.items()]

    @classmethod
    def of_accuracies(cls, values: Sequence[float]) -> "_Coordinate":
        made = cls.__new__(cls)
        made._place(values, _log_error(values), "{:.2f}".format)
        return made

    def _place(
        self,
        values: Sequence[float],
        scale: Callable[[float], float],
        words: Callable[[float], str],
    ) -> None:
        low, high = scale(min(values)), scale(max(values))
        self.heights = [(scale(value) - low) / (high - low or 1.0) for value in values]
        self.ticks = [(0.0, words(min(values))), (1.0, words(max(values)))]


def _panels(
    record: SearchRecord, *, fewest_fields: int, numeric: bool = False
) -> dict[str, tuple[list[TrialRecord], list[str]]]:
    """By methods, the best first: their trials by rank, and those of their settings that differ."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in rank(record.trials):
        if trial.heldout_accuracy is not None:
            groups.setdefault(trial.methods, []).append(trial)
    panels = {}
    for methods, trials in groups.items():
        names = [plain_name(key) for key in trials[0].point if not key.startswith("objective.")]
        fields = []
        for name in names:
            values = [_setting(trial, name) for trial in trials]
            if len(set(values)) > 1 and (not numeric or all(map(is_number, values))):
                fields.append(name)
        if len(fields) >= fewest_fields and len(trials) >= _FEWEST_TRIALS:
            panels[methods] = trials, fields
    return dict(list(panels.items())[:_MOST_PANELS])


def _setting(trial: TrialRecord, name: str) -> Option:
    """A trial's choice; a control's point lacks some that the others have."""
    return next((value for key, value in trial.point.items() if plain_name(key) == name), "")


def _figure(height: float, title: str, subtitle: str) -> Figure:
    """An empty figure with a head; height in inches."""
    figure = Figure((_WIDTH, height), dpi=_DPI, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.01, 0.0, 0.98, 1 - _HEAD / height), h_pad=0.06)
    figure.text(0.015, 1 - 0.2 / height, title, fontsize=15, fontweight="bold", va="top")
    figure.text(0.015, 1 - 0.52 / height, subtitle, fontsize=10.5, color=_MUTED, va="top")
    return figure


def _scale_accuracies(
    axes: Axes,
    direction: Literal["x", "y"],
    values: Sequence[float],
    *,
    ends: Sequence[float],
    ticks: int = 9,
) -> None:
    """Gives an axis the range of these percentages. Where they lie far apart, its scale is the
    logarithm of the error: halving the errors is an equal step at 80 and at 98 percent.

    Args:
        ends: what is of interest; the scale's upper end resolves it.
    """
    axis = axes.xaxis if direction == "x" else axes.yaxis
    limits: Any = axes.set_xlim if direction == "x" else axes.set_ylim
    low, high = min(values), max(values)
    if high - low < 8:
        room = max(0.15, 0.08 * (high - low))
        limits(low - room, min(high + room, 100.5))
        axis.set_major_locator(MaxNLocator(ticks - 2, steps=[1, 2, 2.5, 5, 10]))
        return
    scale = _log_error([*values, *ends])
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


def _log_error(percents: Sequence[float]) -> Callable[[float], float]:
    """The scale of accuracies in percent by which halving the errors is a step of equal length."""
    errors = [100 - value for value in percents if value < 100]
    least = min(errors, default=1.0) / 2  # where those without an error go
    return lambda value: -math.log10(max(least, 100 - value))


def _scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """A logarithmic axis; a single cost stands in its middle."""
    axes.set_xscale("log")
    low, high = min(costs), max(costs)
    room = max(1.25, (high / low) ** 0.15)
    axes.set_xlim(low / room, high * room)
    _few_log_ticks(axes, [low, high] if low == high else [low / room, high * room])


def _few_log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Plain numbers at 1, 2 and 5 of each decade; each power of ten where that is too many."""
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
    if len(inside) > 5:
        inside = inside[:: math.ceil(len(inside) / 5)]
    axes.xaxis.set_major_locator(FixedLocator(inside))
    axes.xaxis.set_major_formatter(FixedFormatter([_short_number(mark) for mark in inside]))
    axes.xaxis.set_minor_locator(NullLocator())


def _short_number(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 9.999 * size or (value >= size and unit != "k"):
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _swarm(axes: Axes, values: Sequence[float]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Offsets, in rows, that keep the dots of a row from hiding each other."""
    places = axes.transData.transform([(value, 0.0) for value in values])
    across = abs(axes.transData.transform((0.0, 1.0))[1] - axes.transData.transform((0.0, 0.0))[1])
    diameter = 8.5 / 72 * _DPI
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


def _label_right(axes: Axes, labels: Iterable[tuple[float, str, str]]) -> None:
    """Words at the right end of the axes at these values, moved apart where they would overlap."""
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
    # Those that were pushed beyond the top come back down together.
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
            fontweight="bold" if colour != _MUTED else "normal",
            arrowprops={"arrowstyle": "-", "color": _OTHER, "linewidth": 0.8, "relpos": (0, 0.5)},
        )


def _note_on_top(
    axes: Axes, value: float, text: str, colour: str, side: Literal["left", "right"]
) -> None:
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


def _teacher_accuracy(record: SearchRecord) -> list[float]:
    """In percent; none before the teacher is ready."""
    return _percents(
        value for key, value in record.teacher_metrics.items() if key == "heldout_accuracy"
    )


def _percents(shares: Iterable[float]) -> list[float]:
    return [100 * share for share in shares]


def _plain(methods: str) -> str:
    return "none (control)" if methods == CONTROL else methods


def _method_words(trial: TrialRecord) -> str:
    return "control" if trial.is_control else trial.methods


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
