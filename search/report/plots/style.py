"""What all pictures share: colours, the house style, and the head of a figure."""

from collections.abc import Container, Iterable, Mapping
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from search.experiment.schema import CONTROL
from search.experiment.space.space import published_trials
from search.leaderboard.ranking import rank
from search.record.record import SearchRecord, TrialRecord
from search.record.wording import METRIC_WORDS

PALETTE = (
    *("#3b6fb6", "#d9822b", "#3a9a6d", "#8a62a8", "#c4504f"),
    *("#3aa6b0", "#8f6b4a", "#cf7fae", "#8f9a3a", "#64748b"),
)
_FAINT = "#e6e8ec"
INK, MUTED, OTHER = "#2b2f36", "#7a808a", "#b4b9c2"
SHADES = LinearSegmentedColormap.from_list("shades", ["#d5dbe5", "#7fa3d1", "#2f5d9e", "#173562"])
STYLE: Mapping[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": OTHER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
_WIDTH = 10.0  # inches

# MLflow's pages show pictures unscaled. At 860 pixels they fit a laptop's screen, and their text is
# as large as that of the pages.
DPI = 86
_HEAD = 0.85  # inches, for title and subtitle
HALO = (withStroke(linewidth=3, foreground="white"),)


def method_colours(record: SearchRecord) -> dict[str, str]:
    """A colour for each set of methods, the same in all pictures.

    With more sets than colours, the best get the colours and the others are grey.
    """
    ranked = list(dict.fromkeys(trial.methods for trial in rank(record.trials)))
    names = [name for name in ranked if name != CONTROL]
    if len(names) <= len(PALETTE):  # then no colour changes while the search runs
        started = [trial.methods for trial in record.trials]
        names.sort(key=started.index)
    colours = dict.fromkeys(names, OTHER)
    colours |= dict(zip(names, PALETTE, strict=False))
    return {name: INK if name == CONTROL else colours[name] for name in ranked}


def new_figure(height: float, title: str, subtitle: str) -> Figure:
    """An empty figure with title and subtitle; its height is in inches."""
    figure = Figure((_WIDTH, height), dpi=DPI, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.01, 0.0, 0.98, 1 - _HEAD / height), h_pad=0.06)
    figure.text(0.015, 1 - 0.2 / height, title, fontsize=15, fontweight="bold", va="top")
    figure.text(0.015, 1 - 0.52 / height, subtitle, fontsize=10.5, color=MUTED, va="top")
    return figure


def dot_of(trial: TrialRecord, colour: str, *, published: bool) -> dict[str, Any]:
    """How a trial is drawn: filled if it finished, a diamond above the others if published."""
    return {
        "marker": "D" if published else "o",
        "facecolor": colour if trial.state == "finished" else "white",
        "edgecolor": INK if published else colour,
        "zorder": 4 if published else 3,
        "gid": "published" if published else "trial",
    }


def teacher_score(record: SearchRecord) -> list[float]:
    """The best teacher's accuracy, or what else is ranked by, in percent; empty while not known."""
    return percents([max(record.teacher_scores.values())] if record.teacher_scores else [])


def teacher_note(record: SearchRecord, value: float) -> str:
    """The words beside its line."""
    best = "best " if len(record.experiment.teachers) > 1 else ""
    return f"{best}teacher {value:.2f}"


def scores(trials: Iterable[TrialRecord]) -> list[float]:
    """What trials are ranked by, in percent."""
    return percents(trial.score or 0.0 for trial in trials)


def score_label(record: SearchRecord, *, narrow: bool = False) -> str:
    """What an axis of scores is called; in two lines, where there is no room for a long name."""
    space = "\n" if narrow and record.metric != "accuracy" else " "
    return f"held-out{space}{METRIC_WORDS[record.metric]}, %"


def published_numbers(record: SearchRecord) -> Container[int]:
    """The numbers of the trials with published settings."""
    origins = {trial.number: trial.proposal.by for trial in record.trials if trial.proposal}
    if not origins:  # in an earlier version
        return published_trials(record.experiment)
    return {number for number, by in origins.items() if by == "published"}


def percents(shares: Iterable[float]) -> list[float]:
    return [100 * share for share in shares]


def methods_in_words(methods: str) -> str:
    return "none (control)" if methods == CONTROL else methods


def counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"
