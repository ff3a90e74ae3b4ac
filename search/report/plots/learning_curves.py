"""Picture: the best accuracy so far of every trial, or what else is ranked by, epoch by epoch."""

from itertools import accumulate

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from search.leaderboard.ranking import rank
from search.record.record import SearchRecord, TrialRecord
from search.record.wording import METRIC_WORDS
from search.report.plots.axes import label_right, scale_accuracies
from search.report.plots.density import MANY, shade
from search.report.plots.style import (
    HALO,
    MUTED,
    OTHER,
    counted,
    method_colours,
    methods_in_words,
    new_figure,
    percents,
    score_label,
    teacher_note,
    teacher_score,
)
from search.stopping.named import all_rungs

# As many as there is room for labels; of many trials no others are lines.
_MOST_LINES = 10


def learning_curves(record: SearchRecord) -> Figure | None:
    """The best accuracy so far of each trial by epoch; crosses mark trials that were stopped.

    Of many trials, the best ones are lines, and all together a shade.
    """
    trials = [trial for trial in reversed(rank(record.trials)) if trial.accuracies]
    if not trials:
        return None
    best, control = trials[-1], record.control_of(trials[-1].student)
    stopped = sum(trial.state == "stopped" for trial in trials)
    many = len(trials) > MANY
    budget = max(trial.epochs - trial.epochs_on_top for trial in trials)
    lines = _leaders(trials, budget, control) if many else trials
    figure = new_figure(
        5.8,
        f"Learning curves of {counted(len(trials), 'trial')}",
        f"best held-out {METRIC_WORDS[record.metric]} so far"
        + (f", the darker, the more trials; {stopped:,} were stopped early" if many else "")
        + (f"; a cross marks each of the {stopped} stopped early" if stopped and not many else ""),
    )
    axes = figure.add_subplot()
    colours = method_colours(record)
    curves = {trial.number: percents(accumulate(trial.curve, max)) for trial in trials}
    # Epochs on top come before the first one, so that rungs are where they are.
    numbers = {
        trial.number: range(
            1 - trial.epochs_on_top, len(trial.accuracies) - trial.epochs_on_top + 1
        )
        for trial in trials
    }
    for trial in lines:
        curve = curves[trial.number]
        leads = trial is best or trial is control
        axes.plot(
            numbers[trial.number],
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
                *(numbers[trial.number][-1], curve[-1]),
                "x",
                color=colours[trial.methods],
                markersize=6,
                gid="cut",
            )
    rungs = all_rungs(record.experiment)
    for epoch in rungs:
        axes.axvline(epoch, color=OTHER, linewidth=1, linestyle=(0, (1, 2)), zorder=0, gid="rung")
    shown = [value for curve in curves.values() for value in curve]
    teacher = teacher_score(record)
    scale_accuracies(axes, "y", [*shown, *teacher], ends=[curve[-1] for curve in curves.values()])
    axes.set(xlabel="epoch", ylabel=score_label(record), xlim=(1, max(2, budget)))
    if many:
        epochs = [epoch for number in curves for epoch in numbers[number]]
        edges = [epoch + 0.5 for epoch in range(budget + 1)]
        shade(axes, epochs, shown, MUTED, x_edges=edges, rows=150)
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
            color=MUTED,
            path_effects=HALO,
        )
    labels = [(value, teacher_note(record, value), MUTED) for value in teacher]
    named: set[str] = set()
    for trial in reversed(lines):  # the best of each method
        if trial.methods not in named and numbers[trial.number][-1] == budget:
            if len(named) < _MOST_LINES or trial.is_control:
                text = f"{_method_words(trial)} {curves[trial.number][-1]:.2f}"
                labels.append((curves[trial.number][-1], text, colours[trial.methods]))
            named.add(trial.methods)
    for value in teacher:
        axes.axhline(value, color=MUTED, linewidth=1.4, linestyle=(0, (5, 3)), gid="teacher")
    label_right(axes, labels)
    rest = [name for name in colours if name not in named and name in {t.methods for t in trials}]
    if rest and not many:
        handles = [
            Line2D([], [], color=colours[name], label=methods_in_words(name)) for name in rest
        ]
        axes.legend(
            handles=handles[:12], title="not finished", loc="lower right", ncols=1 + len(rest) // 6
        )
    return figure


def _leaders(
    trials: list[TrialRecord], budget: int, control: TrialRecord | None
) -> list[TrialRecord]:
    """Of trials from worst to best: the best, the control, and the best that ran to its end of each
    of the leading sets of methods."""
    ended: dict[str, TrialRecord] = {}
    for trial in reversed(trials):
        trained = len(trial.accuracies) - trial.epochs_on_top
        if trained == budget and len(ended) < _MOST_LINES:
            ended.setdefault(trial.methods, trial)
    kept = {trial.number for trial in (*ended.values(), trials[-1])}
    kept |= set() if control is None else {control.number}
    return [trial for trial in trials if trial.number in kept]


def _method_words(trial: TrialRecord) -> str:
    return "control" if trial.is_control else trial.methods
