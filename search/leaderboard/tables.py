"""The leaderboard, and the confirmed students, as tables for a terminal."""

import re
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from kdcore.networks.cost import LATENCY_BATCH, CostName
from search.experiment.schema import CONTROL
from search.experiment.space.point import recipe_in_words
from search.leaderboard.front import costs_of
from search.leaderboard.ranking import (
    LeaderboardRow,
    by_test_accuracy,
    confirmed_trials,
    further_columns,
    leaderboard,
    pretrained_students,
    searches_recipe,
    searches_teacher,
    tested_cells,
    tested_heads,
)
from search.leaderboard.teacher_lead import no_method_won, teacher_caution
from search.record.record import SearchRecord
from search.record.wording import (
    METRIC_HEADS,
    WINNERS_CURSE,
    cost_figure,
    front_in_words,
    gain_in_words,
    percent,
    points,
)

# Nobody reads thousands of rows, and a terminal takes seconds for them.
LONG = 50
"""Rows; of a longer leaderboard the head is shown."""
HEAD = 40
"""Rows that are shown of a long leaderboard, beside the controls."""

# Of costs that only their front has a column for.
_COST_HEADS: Mapping[CostName, str] = {
    "multiply_adds": "multiply-adds",
    "batch_latency_ms": "ms a batch",
}


def leaderboard_table(
    record: SearchRecord,
    method: str = "",
    state: str = "",
    front_by: CostName | None = None,
    *,
    whole: bool = False,
) -> Table:
    """The leaderboard; accuracies in percent, gains in percentage points.

    A single student's cost is a line below the table; several students get columns for it.

    Args:
        record: the search.
        method, state, front_by: only these trials, see `leaderboard`.
        whole: all rows, also of a long one.

    Raises:
        SearchError: the search has no such method.
    """
    several = len(record.experiment.students) > 1
    rows = leaderboard(record, method, state, front_by)
    shown = rows if whole or len(rows) <= LONG else _head(record, rows)
    below = [] if several else _costs(record)
    if len(shown) < len(rows):
        below.append(f"{len(rows) - len(shown):,} more rows: --all or --format csv gives them")
    if front_by is not None:
        below.append(f"These are {front_in_words(record.metric, front_by)}.")
    if record.excluded:
        without = "; ".join(f"{name}, which {words}" for name, words in record.excluded.items())
        below.append(f"Excluded by constraints: {without}.")
    below += [f"Cost: {record.cost}."] if record.experiment.prices else []
    below += [f"The search ended early: {record.ended}."] if record.ended else []
    if verdict := no_method_won(record):
        below.append(f"{verdict[0].upper()}{verdict[1:]}.")
    if caution := teacher_caution(record):
        below.append(f"Caution: {caution}")
    table = Table(
        title=f"{record.name} ({record.state})",
        title_justify="left",
        title_style="bold",
        caption="\n".join(below) or None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("rank", "trial"):
        table.add_column(column, justify="right")
    teachers = searches_teacher(record)
    for column in (*(["student"] if several else []), *(["teacher"] if teachers else [])):
        table.add_column(column, overflow="fold")
    pretrained = bool(pretrained_students(record))
    if pretrained:
        table.add_column("pretrained")
    table.add_column("objective", overflow="fold")
    recipe = searches_recipe(record)
    if recipe:
        table.add_column("recipe", overflow="fold")
    confirmed = any(each.is_confirmed for each in record.confirmed)
    tested = confirmed_trials(record)
    further = further_columns(record)
    cost = front_by if front_by in _COST_HEADS else None
    numbers = [
        *(tested_heads(record) if confirmed else []),
        "held-out %",
        *further.values(),
        "gain",
        *(["parameters", "ms"] if several else []),
        *([_COST_HEADS[cost]] if cost else []),
    ]
    for column in (*numbers, "epochs", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    styles = {"teacher": "cyan", "finished": "", "running": "green"}
    for row in shown:
        status = re.split("[:,]", row.status)[0]
        control = row.objective == CONTROL
        objective = f"{row.objective} (control)" if control else row.objective
        if row.trial is None and not (several or teachers):
            objective = f"teacher {row.student}"
        table.add_row(
            str(row.rank or ""),
            "" if row.trial is None else str(row.trial),
            *(["" if teachers and row.trial is None else row.student] if several else []),
            *([row.teacher] if teachers else []),
            *(["yes" if row.pretrained else ""] if pretrained else []),
            objective,
            *([escape(row.recipe)] if recipe else []),
            *(tested_cells(record, tested.get(row.trial)) if confirmed else []),
            percent(row.heldout_accuracy),
            *(percent(getattr(row, field)) for field in further),
            points(row.gain),
            *([_count(row.parameters), _milliseconds(row.latency_ms)] if several else []),
            *([cost_figure(cost, costs_of(record, cost)[row.student])] if cost else []),
            row.epochs,
            "" if row.seconds is None else f"{row.seconds:.1f}",
            row.status,
            style="bold" if control else styles.get(status, "dim"),
        )
    return table


def _head(record: SearchRecord, rows: list[LeaderboardRow]) -> list[LeaderboardRow]:
    """The first rows, and those of the controls that gains are measured against."""
    controls = [record.control_of(student) for student in record.experiment.students]
    kept = {control.number for control in controls if control is not None}
    return rows[:HEAD] + [row for row in rows[HEAD:] if row.trial in kept]


def confirmed_table(record: SearchRecord) -> Table:
    """The confirmed students: test accuracies, and what else is ranked by, in percent, mean ±
    standard deviation over the seeds; gains over the same student's control in percentage points,
    with Student's 95 % interval."""
    table = Table(
        title=f"{record.name} confirmed with fresh seeds",
        title_justify="left",
        title_style="bold",
        caption=WINNERS_CURSE,
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("trial")
    table.add_column("objective", overflow="fold")
    recipe = searches_recipe(record)
    if recipe:
        table.add_column("recipe", overflow="fold")
    head = METRIC_HEADS.get(record.metric, "%")
    for column in ("seeds", f"searched {head}", f"held-out {head}", *tested_heads(record)):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("gain", overflow="fold")
    searched = {trial.number: trial.score for trial in record.trials if trial.state == "finished"}
    for each in by_test_accuracy(record.confirmed):
        seeds = len(each.test_accuracies)
        words = record.words(each)
        table.add_row(
            each.label,
            words if each.role == "best" else f"{words} ({each.role})",
            *([escape(recipe_in_words(each.point))] if recipe else []),
            str(seeds) if seeds == len(each.runs) else f"{seeds} of {len(each.runs)}",
            percent(searched.get(each.trial)) if each.trial is not None else "",
            percent(each.heldout_score) if seeds else "",
            *tested_cells(record, each),
            gain_in_words(record.confirmed_gain(each)),
            style="bold" if each.role == "control" else "",
        )
    return table


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _milliseconds(latency: float | None) -> str:
    return "" if latency is None else f"{latency:.3g}"


def _costs(record: SearchRecord) -> list[str]:
    """What the only student costs, in a line."""
    return [
        f"student {name}: {cost.parameters:,} parameters, {cost.multiply_adds:,} multiply-adds, "
        f"{_milliseconds(cost.latency_ms)} ms an image, {_milliseconds(cost.batch_latency_ms)} ms "
        f"a batch of {LATENCY_BATCH}"
        for name, cost in record.student_costs.items()
    ]
