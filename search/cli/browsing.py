"""Commands that show what was searched: leaderboard, compare, explain, replay, cache."""

import sys
import time
from enum import StrEnum
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

import search
from search.cli.options import SearchName, StorageOption, console
from search.errors import SearchError

if TYPE_CHECKING:
    from kdcore.networks.cost import CostName
    from search.session.search import Search


class Format(StrEnum):
    """The forms of a leaderboard."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    MARKDOWN = "markdown"


class Cost(StrEnum):
    """What a student costs."""

    PARAMETERS = "parameters"
    MULTIPLY_ADDS = "multiply_adds"
    LATENCY = "latency_ms"
    BATCH_LATENCY = "batch_latency_ms"


class TrialState(StrEnum):
    """What can have become of a trial."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


# A running search writes its record every few seconds.
_WATCH_SECONDS = 2.0


def leaderboard(
    name: SearchName,
    form: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.TABLE,
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="Only trials with this method, like kd.")
    ] = "",
    state: Annotated[TrialState | None, typer.Option(help="Only trials in this state.")] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="All rows; else a long table has its first 40 and the controls."
        ),
    ] = False,
    front: Annotated[
        bool, typer.Option("--front", help="Only the front of accuracy against cost.")
    ] = False,
    cost: Annotated[
        Cost | None, typer.Option(help="Cost of the front (default: search.cost).")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until the search has ended.")
    ] = False,
    storage: StorageOption = "runs",
) -> None:
    """Print a search's leaderboard."""
    from search.leaderboard.formats import as_bytes
    from search.leaderboard.front import front_by
    from search.leaderboard.tables import confirmed_table, leaderboard_table

    if watch and form is not Format.TABLE:
        raise SearchError(f"--format is {form.value}, but --watch shows a table; leave one out")
    found = search.open_search(name, storage=storage)
    record = found.record
    by_cost = front_by(record, front, cost.value if cost else None)
    only = method, state.value if state else "", by_cost
    if watch:
        _watch(found, *only, every)
        return
    if form is Format.TABLE:
        console().print(leaderboard_table(record, *only, whole=every))
        if record.confirmed and not any(only):
            console().print(confirmed_table(record))
    else:
        sys.stdout.buffer.write(as_bytes(record, form.value, *only))


def _watch(
    found: "Search", method: str, state: str, by_cost: "CostName | None", whole: bool
) -> None:
    """Shows a leaderboard until its search has ended, or until Ctrl-C."""
    from rich.live import Live

    from search.leaderboard.tables import leaderboard_table

    record = found.record
    table = leaderboard_table(record, method, state, by_cost, whole=whole)
    # A terminal shows it whole at the end; what does not fit before is cut off below.
    with Live(table, console=console(), auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while record.state == "running":
                time.sleep(_WATCH_SECONDS)
                record = found.record
                table = leaderboard_table(record, method, state, by_cost, whole=whole)
                live.update(table, refresh=True)
        except KeyboardInterrupt:
            pass
        live.vertical_overflow = "visible"


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Name of a search.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Name of another search.")],
    storage: StorageOption = "runs",
) -> None:
    """Show the best of two searches on the same data, by student and methods."""
    from search.leaderboard.comparison import comparison_table

    ours, theirs = (search.open_search(name, storage=storage) for name in (first, second))
    console().print(comparison_table(ours.record, theirs.record))


class Rule(StrEnum):
    """The rules of early stopping."""

    ASHA = "asha"
    HYPERBAND = "hyperband"
    MEDIAN = "median"


def replay(
    name: SearchName,
    stopping: Annotated[
        list[Rule], typer.Option("--stopping", help="Rule; may be repeated (default: asha).")
    ] = [],  # noqa: B006  (typer copies it)
    grace: Annotated[
        list[int], typer.Option("--grace", metavar="EPOCHS", min=1, help="May be repeated.")
    ] = [],  # noqa: B006
    reduction: Annotated[
        list[float], typer.Option("--reduction", metavar="FACTOR", help="May be repeated.")
    ] = [],  # noqa: B006
    slots: Annotated[int, typer.Option(min=1, help="Number of trials at a time.")] = 2,
    storage: StorageOption = "runs",
) -> None:
    """Show what a search would have cost and lost under other early stopping."""
    from search.experiment.search_config import Asha, Hyperband, Median, StoppingSettings
    from search.stopping.replay import replay as outcomes_of
    from search.stopping.replay import replay_table

    record = search.open_search(name, storage=storage).record
    epochs = record.experiment.training.epochs
    # A rung after the first epoch, and after about a tenth, a fifth and a third of the budget.
    grace = grace or sorted({max(1, round(epochs * share)) for share in (0, 0.1, 0.2, 0.33)})
    rules = stopping or [Rule.ASHA]
    wrong = [value for value in reduction if value <= 1 or (Rule.HYPERBAND in rules and value < 2)]
    if wrong:
        least = ">= 2 for hyperband" if Rule.HYPERBAND in rules else "> 1"
        raise SearchError(f"--reduction is {wrong[0]:g}, but must be {least}")
    settings: list[StoppingSettings] = []
    for rule, epoch in product(rules, grace):
        if rule is Rule.MEDIAN:
            settings.append(Median(grace_epochs=epoch))
            continue
        kind = Asha if rule is Rule.ASHA else Hyperband
        settings += [
            kind(grace_epochs=epoch, reduction=factor) for factor in reduction or (2.0, 3.0, 4.0)
        ]
    console().print(replay_table(record, outcomes_of(record, settings, slots)))


def explain(
    name: SearchName,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="Number of a trial.")],
    storage: StorageOption = "runs",
) -> None:
    """Say why a trial was proposed, and why it was stopped or not."""
    print(search.open_search(name, storage=storage).explain(trial))


def cache(
    name: SearchName,
    clear: Annotated[bool, typer.Option("--clear", help="Delete the files.")] = False,
    storage: StorageOption = "runs",
) -> None:
    """Show the size and savings of a search's cached teacher outputs."""
    from search.report.teacher_cache_use import cache_report, clear_cache

    found = search.open_search(name, storage=storage)
    if clear:
        print(f"removed {clear_cache(found.record, found.storage) / 1e6:,.1f} MB")
        return
    print(cache_report(found.record, found.storage))
