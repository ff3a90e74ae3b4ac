"""Two searches side by side: the best trial of each for every student and set of methods."""

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from search.errors import SearchError
from search.experiment.schema import CONTROL
from search.leaderboard.ranking import rank
from search.record.looks import images_of
from search.record.record import SearchRecord, TrialRecord
from search.record.wording import METRIC_WORDS, percent, points


@dataclass(frozen=True)
class Comparison:
    """The best trials of two searches with the same student and methods.

    Args:
        student: the student network.
        methods: like `kd + at`; `none` is the control.
        first: the best trial of the first search; None if it has no such trial.
        second: the best trial of the second search.
    """

    student: str
    methods: str
    first: TrialRecord | None
    second: TrialRecord | None

    @property
    def difference(self) -> float | None:
        """What the second is ranked by minus that of the first; None if either is missing."""
        if self.first is None or self.second is None:
            return None
        return (self.second.score or 0.0) - (self.first.score or 0.0)


def compare(first: SearchRecord, second: SearchRecord) -> list[Comparison]:
    """Compares the best trials for every student and set of methods, the best first.

    A finished trial counts before one that did not finish. If the searches rank by different
    metrics, all trials are compared by their accuracies.

    Raises:
        SearchError: the searches are on different data.
    """
    ours, theirs = (images_of(record.experiment.data) for record in (first, second))
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if differing:
        facts = ", ".join(
            f"data.{name} {ours.get(name)} and {theirs.get(name)}" for name in differing
        )
        raise SearchError(
            f"{first.name} and {second.name} are on different data: {facts}; accuracies can only "
            f"be compared on the same held-out images"
        )
    best = [_best(record) for record in _by_one_metric(first, second)]
    rows = [
        Comparison(*key, best[0].get(key), best[1].get(key))
        for key in dict.fromkeys((*best[0], *best[1]))
    ]
    return sorted(rows, key=_score, reverse=True)


def _by_one_metric(first: SearchRecord, second: SearchRecord) -> tuple[SearchRecord, SearchRecord]:
    """Both searches; as if by accuracy, where they rank by different metrics."""
    if first.metric == second.metric:
        return first, second
    return _by_accuracy(first), _by_accuracy(second)


def _by_accuracy(record: SearchRecord) -> SearchRecord:
    search = record.experiment.search.model_copy(update={"metric": "accuracy"})
    experiment = record.experiment.model_copy(update={"search": search})
    trials = tuple(trial.model_copy(update={"scores": ()}) for trial in record.trials)
    return record.model_copy(update={"experiment": experiment, "trials": trials})


def _best(record: SearchRecord) -> dict[tuple[str, str], TrialRecord]:
    """By student and methods, the best finished trial, or the best of all if none finished."""
    found: dict[tuple[str, str], TrialRecord] = {}
    ranked = rank(tuple(t for t in record.trials if t.score is not None))
    for trial in sorted(ranked, key=lambda trial: trial.state != "finished"):
        found.setdefault((trial.student, trial.methods), trial)
    return found


def _score(row: Comparison) -> float:
    trials = [trial for trial in (row.first, row.second) if trial is not None]
    return max(trial.score or 0.0 for trial in trials)


def comparison_table(first: SearchRecord, second: SearchRecord) -> Table:
    """The comparison for a terminal; accuracies, or what else both searches rank by, in percent,
    differences in percentage points.

    Raises:
        SearchError: the searches are on different data.
    """
    rows = compare(first, second)
    below = ["* not finished"] if any(map(_has_unfinished, rows)) else []
    if first.metric != second.metric:
        ranking = (f"{each.name} ranks by {METRIC_WORDS[each.metric]}" for each in (first, second))
        below.append(f"{', '.join(ranking)}; they are compared by accuracy")
    first, second = _by_one_metric(first, second)
    named = "" if first.metric == "accuracy" else f"{METRIC_WORDS[first.metric]}, "
    table = Table(
        title=f"best held-out {named}%: {first.name} and {second.name}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="\n".join(below) or None,
        caption_justify="left",
    )
    for column in ("student", "methods"):
        table.add_column(column, overflow="fold")
    for column in (first.name, second.name, "difference"):
        table.add_column(column, justify="right", overflow="fold")
    best = [record.best_teacher for record in (first, second)]
    teachers = [
        record.teacher_scores.get(name) for record, name in zip((first, second), best, strict=True)
    ]
    difference = None if None in teachers else (teachers[1] or 0.0) - (teachers[0] or 0.0)
    table.add_row(
        *(", ".join(dict.fromkeys(best)), "teacher", *map(percent, teachers), points(difference)),
        style="cyan",
    )
    for row in rows:
        table.add_row(
            row.student,
            f"{CONTROL} (control)" if row.methods == CONTROL else row.methods,
            _cell(row.first),
            _cell(row.second),
            points(row.difference),
            style="bold" if row.methods == CONTROL else "",
        )
    return table


def _cell(trial: TrialRecord | None) -> str:
    if trial is None:
        return ""
    return percent(trial.score) + ("" if trial.state == "finished" else " *")


def _has_unfinished(row: Comparison) -> bool:
    return any(t is not None and t.state != "finished" for t in (row.first, row.second))
