"""Picture: accuracy, or what else is ranked by, against parameters and latency, with the Pareto
front; of a search for a front, against that cost first."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdcore.networks.cost import CostName
from search.leaderboard.front import costs_of, front
from search.leaderboard.ranking import rank
from search.record.costs import costed_as
from search.record.record import SearchRecord
from search.record.wording import COST_WORDS, METRIC_WORDS
from search.report.plots.axes import scale_accuracies, scale_costs
from search.report.plots.density import MANY
from search.report.plots.style import (
    HALO,
    INK,
    MUTED,
    OTHER,
    counted,
    method_colours,
    methods_in_words,
    new_figure,
    score_label,
    scores,
    teacher_note,
    teacher_score,
)


def accuracy_against_cost(record: SearchRecord) -> Figure | None:
    """Accuracy of the finished trials against parameters and latency, with the Pareto fronts.

    Of many trials, the best of each set of methods are dots, and all together a bar for each
    student.
    """
    trials = [
        trial
        for trial in rank(record.trials)
        if trial.state == "finished" and costed_as(record, trial) in record.student_costs
    ]
    if not trials:
        return None
    student_of = partial(costed_as, record)
    best = {student_of(trial): trial for trial in reversed(trials)}
    many = len(trials) > MANY
    words = METRIC_WORDS[record.metric]
    figure = new_figure(
        5.4,
        f"{words.capitalize()} against cost of {counted(len(best), 'student')}",
        f"bars hold all {len(trials):,} finished trials, their middle half is thick; dots are the "
        "best of each method; the line is the Pareto front"
        if many
        else "each dot is a finished trial; the line is the Pareto front of the students",
    )
    colours, teacher = method_colours(record), teacher_score(record)
    values = scores(trials)
    by_student: dict[str, list[float]] = {}
    for trial, value in zip(trials, values, strict=True):
        by_student.setdefault(student_of(trial), []).append(value)
    dots = trials
    if many:  # they are ranked, so the last one that is set is the best
        dots = list(
            {(student_of(trial), trial.methods): trial for trial in reversed(trials)}.values()
        )
    for panel, name in enumerate(_shown(record), start=1):
        axes = figure.add_subplot(1, 2, panel)
        costs = costs_of(record, name)
        axes.scatter(
            [costs[student_of(trial)] for trial in dots],
            scores(dots),
            s=34,
            color=[colours[trial.methods] for trial in dots],
            edgecolor="white",
            linewidth=0.6,
            alpha=0.75,
            gid="trial",
            zorder=2,
        )
        scale_accuracies(axes, "y", [*values, *teacher], ends=values)
        scale_costs(axes, [costs[student_of(trial)] for trial in trials])
        for student in best if many else ():
            x, spread = costs[student], np.quantile(by_student[student], (0, 0.25, 0.75, 1))
            axes.plot([x, x], spread[[0, 3]], color=OTHER, linewidth=2, zorder=1)
            axes.plot([x, x], spread[[1, 2]], color=OTHER, linewidth=9, zorder=1, gid="density")
        on_front = front(record, trials, name)
        front_costs = [costs[student_of(trial)] for trial in on_front]
        front_accuracies = scores(on_front)
        axes.plot(front_costs, front_accuracies, color=INK, linewidth=1.2, zorder=3)
        axes.scatter(
            front_costs,
            front_accuracies,
            s=90,
            facecolor="none",
            edgecolor=INK,
            linewidth=1.6,
            zorder=4,
            gid=f"pareto {name}",
        )
        for student, trial in best.items():
            above = trial in on_front
            axes.annotate(
                student,
                (costs[student], 100 * (trial.score or 0.0)),
                xytext=(0, 9 if above else -9),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=9.5,
                path_effects=HALO,
                zorder=5,
            )
        for value in teacher:
            axes.axhline(value, color=MUTED, linewidth=1.4, linestyle=(0, (5, 3)))
            axes.annotate(
                teacher_note(record, value),
                (0, value),
                xycoords=axes.get_yaxis_transform(),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=9,
                color=MUTED,
                path_effects=HALO,
            )
        axes.set(xlabel=COST_WORDS[name], ylabel=score_label(record) if panel == 1 else "")
    names = [name for name in colours if name in {trial.methods for trial in trials}]
    handles = [
        Line2D([], [], linestyle="", marker="o", color=colours[name], label=methods_in_words(name))
        for name in names[:10]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    return figure


def _shown(record: SearchRecord) -> tuple[CostName, CostName]:
    """The costs of the two panels."""
    search = record.experiment.search
    if search.goal == "pareto" and search.cost not in ("parameters", "latency_ms"):
        return search.cost, "parameters"
    return "parameters", "latency_ms"
