"""Picture: the importance of the settings, as bars."""

from matplotlib.figure import Figure

from search.record.record import SearchRecord
from search.record.wording import METRIC_WORDS
from search.report.importance import MOST_TRIALS, importances
from search.report.plots.panels import MOST_PANELS
from search.report.plots.style import MUTED, counted, method_colours, methods_in_words, new_figure


def importance(record: SearchRecord) -> Figure | None:
    """The importance of the settings over all trials and within each method."""
    groups = importances(record, MOST_PANELS)
    if not groups:
        return None
    bars = sum(len(group.shares) for group in groups)
    sampled = any(group.trials > MOST_TRIALS for group in groups)
    figure = new_figure(
        1.7 + 0.34 * (bars + 1.5 * len(groups)),
        f"What the {METRIC_WORDS[record.metric]} depends on",
        f"share of its variance that a setting explains (fANOVA), at epoch {groups[0].epoch}"
        + (
            f"; from at most {MOST_TRIALS} trials of a group"
            if sampled
            else ", which all these trials reached"
        ),
    )
    axes = figure.add_subplot()
    colours = method_colours(record)
    position, ticks = 0.0, []
    for group in groups:
        axes.text(
            *(0.0, position),
            f" {methods_in_words(group.group)}, {counted(group.trials, 'trial')}",
            fontweight="bold",
            va="center",
        )
        for name, share in group.shares.items():
            position += 1
            colour = colours.get(group.group, MUTED)
            axes.barh(position, 100 * share, 0.72, color=colour, gid="share")
            axes.text(100 * share + 1, position, f"{100 * share:.0f} %", va="center", fontsize=10)
            ticks.append((position, name.removeprefix(f"{group.group}.")))
        position += 1.5
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set(ylim=(position - 0.8, -0.7), xlim=(0, 108), xlabel="share of the variance, %")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    return figure
