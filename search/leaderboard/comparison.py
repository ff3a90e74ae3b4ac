"""Two searches side by side: the best trial of each for every student and set of methods."""

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from search.errors import SearchError
from search.experiment.schema import CONTROL
from search.leaderboard.ranking import rank
from search.record.looks import images_of
from search.record.record import SearchRecord, TrialRecord
from search.record.wording import percent, points


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
        """Held-out accuracy of the second minus that of the first; None if either is missing."""
        if self.first is None or self.second is None:
            return None
        return (self.second.heldout_accuracy or 0.0) - (self.first.heldout_accuracy or 0.0)


def compare(first: SearchRecord, second: SearchRecord) -> list[Comparison]:
    """Compares the best trials for every student and set of methods, the most accurate first.

    A finished trial counts before one that did not finish.

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
    best = [_best(record) for record in (first, second)]
    rows = [
        Comparison(*key, best[0].get(key), best[1].get(key))
        for key in dict.fromkeys((*best[0], *best[1]))
    ]
    return sorted(rows, key=_accuracy, reverse=True)


def _best(record: SearchRecord) -> dict[tuple[str, str], TrialRecord]:
    """By student and methods, the best finished trial, or the best of all if none finished."""
    found: dict[tuple[str, str], TrialRecord] = {}
    ranked = rank(tuple(t for t in record.trials if t.heldout_accuracy is not None))
    for trial in sorted(ranked, key=lambda trial: trial.state != "finished"):
        found.setdefault((trial.student, trial.methods), trial)
    return found


def _accuracy(row: Comparison) -> float:
    trials = [trial for trial in (row.first, row.second) if trial is not None]
    return max(trial.heldout_accuracy or 0.0 for trial in trials)


def comparison_table(first: SearchRecord, second: SearchRecord) -> Table:
    """The comparison for a terminal; accuracies in percent, differences in percentage points.

    Raises:
        SearchError: the searches are on different data.
    """
    rows = compare(first, second)
    table = Table(
        title=f"best held-out %: {first.name} and {second.name}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="* not finished" if any(map(_has_unfinished, rows)) else None,
        caption_justify="left",
    )
    for column in ("student", "methods"):
        table.add_column(column, overflow="fold")
    for column in (first.name, second.name, "difference"):
        table.add_column(column, justify="right", overflow="fold")
    teachers = [record.teacher_metrics.get("heldout_accuracy") for record in (first, second)]
    names = dict.fromkeys(record.experiment.teacher.backbone for record in (first, second))
    difference = None if None in teachers else (teachers[1] or 0.0) - (teachers[0] or 0.0)
    table.add_row(
        *(", ".join(names), "teacher", *map(percent, teachers), points(difference)), style="cyan"
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
    return percent(trial.heldout_accuracy) + ("" if trial.state == "finished" else " *")


def _has_unfinished(row: Comparison) -> bool:
    return any(t is not None and t.state != "finished" for t in (row.first, row.second))
