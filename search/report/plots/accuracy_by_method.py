"""Picture: the accuracy of every trial, in a row for each set of methods."""

from matplotlib.figure import Figure

from search.experiment.space.space import published_trials
from search.leaderboard.ranking import rank
from search.record.record import SearchRecord
from search.record.wording import percent
from search.report.plots.axes import note_on_top, scale_accuracies, swarm
from search.report.plots.style import (
    INK,
    MUTED,
    dot_of,
    method_colours,
    methods_in_words,
    new_figure,
    percents,
    teacher_accuracy,
)


def accuracy_by_method(record: SearchRecord) -> Figure | None:
    """A row for each set of methods, the best on top, and a dot for each trial."""
    trials = [trial for trial in rank(record.trials) if trial.heldout_accuracy is not None]
    if not trials:
        return None
    rows = list(dict.fromkeys(trial.methods for trial in trials))
    height = 1.9 + 0.42 * max(3, len(rows))
    figure = new_figure(
        height,
        f"{methods_in_words(rows[0])} leads with {percent(trials[0].heldout_accuracy)} %",
        "each dot is a trial, filled if it finished and hollow if not; "
        "a diamond is the published setting",
    )
    axes = figure.add_subplot()
    teacher, control = teacher_accuracy(record), record.control_of(trials[0].student)
    values = percents(trial.heldout_accuracy or 0.0 for trial in trials)
    finished = [v for v, trial in zip(values, trials, strict=True) if trial.state == "finished"]
    scale_accuracies(axes, "x", [*values, *teacher], ends=finished or values)
    axes.set(xlabel="held-out accuracy, %", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [methods_in_words(row) for row in rows])
    axes.tick_params(axis="y", length=0)
    for value in teacher:
        axes.axvline(value, color=MUTED, linewidth=1.4, linestyle=(0, (5, 3)), gid="teacher")
        note_on_top(axes, value, f"teacher {value:.2f}", MUTED, "left")
    if control is not None and control.heldout_accuracy is not None:
        value = 100 * control.heldout_accuracy
        axes.axvline(value, color=INK, linewidth=1.2, gid="control")
        below = not teacher or value < teacher[0]
        owner = "" if len(record.experiment.students) == 1 else f"{control.student}'s "
        words = f"{owner}control {value:.2f}"
        note_on_top(axes, value, words, INK, "right" if below else "left")
    colours, published = method_colours(record), published_trials(record.experiment)
    figure.draw_without_rendering()  # the swarm needs the final size of the axes
    for row, methods in enumerate(rows):
        group = [(v, t) for v, t in zip(values, trials, strict=True) if t.methods == methods]
        heights = row + swarm(axes, [value for value, _ in group])
        for (value, trial), y in zip(group, heights, strict=True):
            known = trial.number in published
            axes.scatter(
                value,
                y,
                s=60 if known else 36,
                linewidth=1.3,
                **dot_of(trial, colours[methods], published=known),
            )
    return figure
