"""The tables of a reproduction: a block for each pair, and what is said around them."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from search.experiment.schema import CONTROL
from search.record.wording import percent, points, spread
from search.report.reproduction.comparison import TEACHER, Accuracy, Block, Line

PROTOCOL = (
    "The protocol of the benchmark: each run trains on the WHOLE training split, and its last and "
    "best epoch are measured on the TEST split, which everywhere else is not looked at before "
    "confirm or best. The best epoch is chosen on the test split, so its accuracy is too high. "
    "Each run is recorded as a look at it."
)

NOISE = (
    "Accuracies are means over the seeds ± their standard deviation, in percent. difference: ours, "
    "of the kind of epoch that was published, minus the published figure, in points ± half its "
    "95 % interval (Welch's t). Within noise: the interval has zero in it. A figure that was "
    "published without a spread is taken to have ours, and one without a number of seeds to be of "
    "one run; with one seed of ours it is unknown. gain: over the student alone, in points. "
    "images/s: training images; as the seconds of a run, with the evaluation after each epoch."
)

COLUMNS = (
    *("row", "published %", "epoch", "last %", "best %", "seeds", "difference", "noise"),
    *("gain (published)", "s a run", "images/s", "source"),
)
_TEXTS = ("row", "epoch", "noise", "source")


def rows(block: Block) -> list[tuple[str, ...]]:
    """The texts of a block's lines, one for each of the columns."""
    sources = _sources(block)
    return [_cells(line, sources) for line in block.lines]


def _sources(block: Block) -> list[str]:
    """Where a block's figures are from; the table has their numbers, from 1."""
    return list(dict.fromkeys(line.figure.source for line in block.lines if line.figure))


def _cells(line: Line, sources: Sequence[str]) -> tuple[str, ...]:
    figure = line.figure
    difference = points(line.difference)
    if line.half_width is not None:
        difference += f" ± {100 * line.half_width:.2f}"
    gain = points(line.gain)
    if line.published_gain is not None:
        gain += f" ({points(line.published_gain)})"
    rate = line.images_per_second
    return (
        row_name(line),
        "" if figure is None else _accuracy(Accuracy(figure.accuracy, figure.spread)),
        "" if figure is None else figure.epoch or "unknown",
        _accuracy(line.last),
        _accuracy(line.best),
        str(len(line.runs)) if line.row != TEACHER else "",
        difference,
        line.verdict,
        gain,
        "" if line.seconds is None else f"{line.seconds:,.0f}",
        "" if rate is None else f"{rate:,.0f}",
        "" if figure is None else f"[{sources.index(figure.source) + 1}]",
    )


def row_name(line: Line) -> str:
    if line.row == TEACHER:
        return f"teacher {line.objective}"
    return row_in_words(line.row)


def row_in_words(row: str) -> str:
    return "student alone" if row == CONTROL else row


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return ""
    if accuracy.deviation is None:
        return percent(accuracy.mean)
    return spread(accuracy.mean, accuracy.deviation)


def notes(block: Block) -> list[str]:
    """What belongs to a block's table alone."""
    found = [f"[{number}] {source}" for number, source in enumerate(_sources(block), start=1)]
    if block.changes:
        found.append(
            "The published figures are of ANOTHER PROTOCOL or other data than these runs: "
            + "; ".join(block.changes)
        )
    found += block.failures
    return [*found, f"cost {cost([block])}"]


def cost(blocks: Sequence[Block]) -> str:
    """What the runs took, in words."""
    minutes: dict[str, float] = {}
    for block in blocks:
        minutes[block.device] = minutes.get(block.device, 0.0) + block.device_minutes
    words = ", ".join(f"{used:,.1f} {device}-minutes" for device, used in minutes.items())
    return f"{words}, without the teacher"


def block_table(block: Block) -> Table:
    """A pair's table for a terminal."""
    table = Table(
        title=block.title,
        title_justify="left",
        title_style="bold",
        caption=escape("\n".join(notes(block))),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in COLUMNS:
        text = column in _TEXTS
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    styles = {TEACHER: "cyan", CONTROL: "bold"}
    for line, texts in zip(block.lines, rows(block), strict=True):
        table.add_row(*map(escape, texts), style=styles.get(line.row, ""))
    return table
