"""Picture: the accuracy of every trial, or what else is ranked by, in a row for each method set."""

import numpy as np
from matplotlib.figure import Figure

from search.leaderboard.ranking import rank
from search.record.record import SearchRecord, TrialRecord
from search.record.wording import percent_of
from search.report.plots.axes import note_on_top, scale_accuracies, swarm
from search.report.plots.density import LEADERS, MANY, band
from search.report.plots.style import (
    INK,
    MUTED,
    dot_of,
    method_colours,
    methods_in_words,
    new_figure,
    published_numbers,
    score_label,
    scores,
    teacher_note,
    teacher_score,
)

# Where there are many trials.
_MOST_ROWS = 40  # more than the catalogue has methods
_FULL_ROW = 40  # trials, whose dots would lie upon each other


def accuracy_by_method(record: SearchRecord) -> Figure | None:
    """A row for each set of methods, the best on top, and a dot for each trial.

    Of many trials, the best and the published ones are dots, and the others of a full row a band.
    """
    trials = [trial for trial in rank(record.trials) if trial.score is not None]
    if not trials:
        return None
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(trial.methods, []).append(trial)
    many = len(trials) > MANY
    rows = list(groups)[:_MOST_ROWS] if many else list(groups)
    height = 1.9 + 0.42 * max(3, len(rows))
    figure = new_figure(
        height,
        f"{methods_in_words(rows[0])} leads with {percent_of(record.metric, trials[0].score)}",
        f"a band is high where many of the {len(trials):,} trials are; dots are the best, "
        "a diamond is the published setting"
        if many
        else "each dot is a trial, filled if it finished and hollow if not; "
        "a diamond is the published setting",
    )
    axes = figure.add_subplot()
    teacher, control = teacher_score(record), record.control_of(trials[0].student)
    values = scores(trials)
    finished = [v for v, trial in zip(values, trials, strict=True) if trial.state == "finished"]
    scale_accuracies(axes, "x", [*values, *teacher], ends=finished or values)
    axes.set(xlabel=score_label(record), ylim=(len(rows) - 0.5, -0.5))
    words = [methods_in_words(row) for row in rows]
    if many:
        words = [f"{name}, {len(groups[row]):,}" for name, row in zip(words, rows, strict=True)]
    axes.set_yticks(range(len(rows)), words)
    axes.tick_params(axis="y", length=0)
    for value in teacher:
        axes.axvline(value, color=MUTED, linewidth=1.4, linestyle=(0, (5, 3)), gid="teacher")
        note_on_top(axes, value, teacher_note(record, value), MUTED, "left")
    if control is not None and control.score is not None:
        value = 100 * control.score
        axes.axvline(value, color=INK, linewidth=1.2, gid="control")
        below = not teacher or value < teacher[0]
        owner = "" if len(record.experiment.students) == 1 else f"{control.student}'s "
        note = f"{owner}control {value:.2f}"
        note_on_top(axes, value, note, INK, "right" if below else "left")
    colours, published = method_colours(record), published_numbers(record)
    figure.draw_without_rendering()  # the swarm needs the final size of the axes
    for row, methods in enumerate(rows):
        group = groups[methods]
        values = scores(group)
        if many and len(group) > _FULL_ROW:
            band(axes, row, values, colours[methods])
            heights = np.full(len(group), float(row))
            drawn = [n for n, t in enumerate(group) if n < LEADERS or t.number in published]
        else:
            heights = row + swarm(axes, values)
            drawn = list(range(len(group)))
        for place in drawn:
            known = group[place].number in published
            axes.scatter(
                values[place],
                heights[place],
                s=60 if known else 36,
                linewidth=1.3,
                **dot_of(group[place], colours[methods], published=known),
            )
    return figure
