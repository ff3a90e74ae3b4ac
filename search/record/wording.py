"""How the figures of a search are written: percent, points, time spans, paths."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kdcore.networks.cost import LATENCY_BATCH, CostName
from kdcore.training.metric import Metric
from search.record.paired_gain import PairedGain

METRIC_WORDS: Mapping[Metric, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "top5": "top-5 accuracy",
}
METRIC_HEADS: Mapping[Metric, str] = {"balanced_accuracy": "balanced %", "top5": "top-5 %"}
"""By metric other than the accuracy, the head of its column."""


COST_WORDS: Mapping[CostName, str] = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds for one image",
    "latency_ms": "milliseconds for one image",
    "batch_latency_ms": f"milliseconds for a batch of {LATENCY_BATCH} images",
}


def front_in_words(metric: Metric, cost: CostName) -> str:
    """What the students that no other beats in both are called, with what they are compared by."""
    return f"the front of held-out {METRIC_WORDS[metric]} against {COST_WORDS[cost]}"


def cost_figure(name: CostName, cost: float) -> str:
    """A figure of a network's cost."""
    return f"{cost:.3g}" if name in ("latency_ms", "batch_latency_ms") else f"{cost:,.0f}"


def excess_in_words(name: CostName, cost: float, key: str, limit: float) -> str:
    """What a network costs that is beyond a limit, like `has 80,000 parameters, but ... is ...`.

    Args:
        name: of the figure.
        cost: the network's.
        key: the limit's name.
        limit: that it exceeds.
    """
    costs = {
        "parameters": "has {} parameters",
        "multiply_adds": "takes {} multiply-adds an image",
        "latency_ms": "takes {} ms an image",
        "batch_latency_ms": f"takes {{}} ms a batch of {LATENCY_BATCH}",
    }[name].format(cost_figure(name, cost))
    return f"{costs}, but {key} is {cost_figure(name, limit)}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def kind_of(metric: Metric) -> str:
    """What is said behind a percentage, like ` balanced accuracy`; nothing where it is accuracy."""
    return "" if metric == "accuracy" else f" {METRIC_WORDS[metric]}"


def percent_of(metric: Metric, share: float | None) -> str:
    """A share in percent and its kind, like `70.00 % balanced accuracy`."""
    return f"{percent(share) or '-'} %{kind_of(metric)}"


def spread(mean: float | None, deviation: float | None) -> str:
    """Mean and standard deviation in percent, like `96.41 ± 0.20`."""
    return "" if deviation is None else f"{percent(mean)} ± {100 * deviation:.2f}"


def points(gain: float | None) -> str:
    return "" if gain is None else f"{100 * gain:+.2f}"


def markdown_table(lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its head first."""
    names, *rows = lines
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for cells in (names, ["---"] * len(names), *rows)
    )


WINNERS_CURSE = (
    "Winner's curse: the best of many trials is also the luckiest, so the accuracy that it was "
    "chosen by is too high; fresh seeds on test images, which chose nothing, say what is left."
)


def gain_in_words(gain: PairedGain | None) -> str:
    """A paired gain in percentage points, with its interval and what that says."""
    if gain is None:
        return ""
    verdict = "more than noise" if gain.is_more_than_noise else "within noise"
    return f"{points(gain.mean)} [{points(gain.low)}, {points(gain.high)}] {verdict}"


def shortened(name: str, most: int) -> str:
    """A name with at most so many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def duration(seconds: float) -> str:
    """A time span for people: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def as_typed(path: Path) -> str:
    """A path as the user would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
