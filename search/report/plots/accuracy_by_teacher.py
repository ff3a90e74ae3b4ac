"""Picture: what students reach with each teacher, against what the teacher itself reaches."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from search.leaderboard.ranking import rank
from search.record.record import SearchRecord, TrialRecord
from search.record.wording import METRIC_WORDS, percent_of
from search.report.plots.axes import label_right, scale_accuracies
from search.report.plots.density import MANY
from search.report.plots.style import (
    INK,
    OTHER,
    dot_of,
    method_colours,
    methods_in_words,
    new_figure,
    percents,
    published_numbers,
    score_label,
    scores,
)

_LEGEND = 10  # methods

# Of the axes' width: what the dots of one teacher need, and its name.
_COLUMN, _NAME = 0.05, 0.25
_SLANTED_INCHES = 0.06  # in height, of a letter of a name that slants for want of room


def accuracy_by_teacher(record: SearchRecord) -> Figure | None:
    """For each teacher, at its own held-out accuracy, a column of dots: the trials that learned
    from it. The best of each is ringed, and lines are the controls. Drawn only of several teachers.

    Of many trials, the best of each method are dots, and all together a bar.
    """
    teachers = record.teacher_scores
    columns: dict[str, list[TrialRecord]] = {label: [] for label in teachers}
    for trial in rank(record.trials):
        if trial.score is not None and (label := record.teacher_of(trial)) in columns:
            columns[label].append(trial)
    shown = {label: trials for label, trials in columns.items() if trials}
    if len(teachers) < 2 or not shown:
        return None
    everyone = [trial for trials in shown.values() for trial in trials]
    many = len(everyone) > MANY
    words = METRIC_WORDS[record.metric]
    leader = rank(tuple(everyone))[0]
    xs = percents(teachers[label] for label in shown)
    room = 0.1 * (max(xs) - min(xs)) or 0.5
    gaps = [right - left for left, right in pairwise(sorted(xs))]
    near = min(gaps, default=1.0) < _NAME * (max(xs) - min(xs) + 2 * room)
    figure = new_figure(
        5.6 + (_SLANTED_INCHES * max(map(len, shown)) if near else 0.0),
        f"Students of {record.teacher_of(leader)} lead with "
        f"{percent_of(record.metric, leader.score)}",
        f"bars hold all {len(everyone):,} trials, dots are the best of each method; ring and "
        "number are the best with each teacher"
        if many
        else "each dot is a trial, filled if it finished; a diamond is the published setting; ring "
        "and number are the best",
    )
    axes = figure.add_subplot()
    controls = {
        control.student: control
        for student in record.experiment.students
        if (control := record.control_of(student)) is not None
    }
    values = scores((*everyone, *controls.values()))
    finished = [trial for trial in everyone if trial.state == "finished"]
    scale_accuracies(axes, "y", values, ends=scores(finished) or values)
    axes.set_xlim(min(xs) - room, max(xs) + room)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.set(xlabel=f"the teacher's {score_label(record)}", ylabel=f"student's {words}, %")
    figure.draw_without_rendering()  # the places of columns need the final scale
    to_share = axes.transData + axes.transAxes.inverted()
    places = spread([float(to_share.transform((x, values[0]))[0]) for x in xs], _COLUMN)
    colours, published = method_colours(record), published_numbers(record)
    across = axes.get_yaxis_transform()
    for place, trials in zip(places, shown.values(), strict=True):
        dots = trials
        if many:  # they are ranked, so the last one that is set is the best
            dots = list({trial.methods: trial for trial in reversed(trials)}.values())
            quarters = np.quantile(scores(trials), (0, 0.25, 0.75, 1))
            for ends, width in ((quarters[[0, 3]], 2), (quarters[[1, 2]], 9)):
                axes.plot(
                    [place, place], ends, color=OTHER, linewidth=width, transform=across, zorder=1
                )
        for trial in dots:
            axes.scatter(
                place,
                100 * (trial.score or 0.0),
                s=36,
                linewidth=1.3,
                transform=across,
                **dot_of(trial, colours[trial.methods], published=trial.number in published),
            )
        axes.scatter(
            place,
            100 * (trials[0].score or 0.0),
            s=130,
            facecolor="none",
            edgecolor=INK,
            linewidth=1.6,
            transform=across,
            zorder=5,
            gid="best",
        )
    for place, (label, trials) in zip(places, shown.items(), strict=True):
        axes.annotate(
            f"{label}: {100 * (trials[0].score or 0.0):.2f}",
            (place, 1),
            xycoords="axes fraction",
            xytext=(0, 4),
            textcoords="offset points",
            ha="left" if near else "center",
            va="bottom",
            rotation=45 if near else 0,
            rotation_mode="anchor",
            fontsize=10,
        )
    labels = []
    for student, control in controls.items():
        value = 100 * (control.score or 0.0)
        axes.axhline(value, color=INK, linewidth=1.2, gid="control")
        owner = "" if len(record.experiment.students) == 1 else f"{student}'s "
        labels.append((value, f"{owner}control {value:.2f}", INK))
    label_right(axes, labels)
    names = [name for name in colours if name in {trial.methods for trial in everyone}]
    handles = [
        Line2D([], [], linestyle="", marker="o", color=colours[name], label=methods_in_words(name))
        for name in names[:_LEGEND]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    return figure


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places that lie at least a gap apart, each as near to where it was as its neighbours let it.

    Args:
        places: along a line, in any order.
        gap: between two of them.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[list[float]] = []  # centre and number of those that touch
    for index in order:
        groups.append([places[index], 1])
        while len(groups) > 1:
            (left, few), (right, more) = groups[-2:]
            if right - left >= gap * (few + more) / 2 - 1e-12:
                break
            together = few + more
            groups[-2:] = [[(left * few + right * more) / together, together]]
    moved = [
        centre + gap * (number - (count - 1) / 2)
        for centre, count in groups
        for number in range(int(count))
    ]
    return [moved[order.index(index)] for index in range(len(places))]
