"""Picture: how far a reproduction is from the published figures."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from search.report.plots.drawings import png_of
from search.report.plots.style import INK, MUTED, OTHER, counted, new_figure
from search.report.reproduction.comparison import Block, Verdict
from search.report.reproduction.table import row_name

_COLOURS: Mapping[Verdict, str] = {
    "within noise": "#3a9a6d",
    "outside noise": "#c4504f",
    "unknown": MUTED,
    "other protocol": OTHER,
}


def differences_png(blocks: Sequence[Block]) -> bytes | None:
    """The picture as the content of a PNG file; none where nothing was published."""
    return png_of(lambda: differences(blocks))


def differences(blocks: Sequence[Block]) -> Figure | None:
    """Each line with a published figure a dot, its 95 % interval a bar, the pairs below each
    other."""
    shown = [
        (block, [line for line in block.lines if line.difference is not None]) for block in blocks
    ]
    shown = [(block, lines) for block, lines in shown if lines]
    if not shown:
        return None
    count = sum(len(lines) for _, lines in shown)
    figure = new_figure(
        1.9 + 0.32 * (count + 1.8 * len(shown)),
        "Ours minus published",
        f"test accuracy of the published kind of epoch, in points, with its 95 % interval; "
        f"{counted(count, 'published figure')}",
    )
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    position, ticks = 0.0, []
    drawn: dict[Verdict, None] = {}
    for block, lines in shown:
        note = " (other protocol or data)" if block.changes else ""
        axes.text(
            *(0.0, position),
            f" {block.pair}{note}",
            transform=axes.get_yaxis_transform(),
            fontweight="bold",
            va="center",
        )
        for line in lines:
            assert line.difference is not None
            position += 1
            colour = _COLOURS[line.verdict]
            drawn[line.verdict] = None
            place = 100 * line.difference
            axes.errorbar(
                *(place, position),
                xerr=None if line.half_width is None else 100 * line.half_width,
                fmt="o",
                color=colour,
                capsize=3,
                zorder=3,
            )
            assert line.figure is not None
            ticks.append((position, f"{row_name(line)}, {line.figure.epoch or 'unknown'} epoch"))
        position += 1.8
    for verdict in drawn:
        axes.plot([], [], "o", color=_COLOURS[verdict], label=verdict)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(drawn), borderaxespad=0.2)
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set(ylim=(position - 1.0, -0.7), xlabel="difference, points")
    axes.tick_params(axis="y", length=0)
    return figure
