"""The command that looks at all searches, wherever they run: status."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from search.cli.options import JOB_SERVER, SomeJobServer, StorageOption, console
from search.errors import no_search

if TYPE_CHECKING:
    from search.cluster.machine_load import MachineLoad
    from search.cluster.overview import SeenSearch
    from search.record.record import SearchRecord


def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of a search (default: all).")
    ] = None,
    address: SomeJobServer = None,
    storage: StorageOption = "runs",
) -> None:
    """Show searches wherever they run: here, at a job server, under Slurm."""
    from search.cluster.overview import overview

    seen = overview(storage, address or JOB_SERVER, must_answer=address is not None)
    if name is None:
        console().print(_searches_table(seen.searches))
        console().print(_machines_table(seen.machines))
    else:
        found = [search for search in seen.searches if search.name == name]
        for search in found:
            _show(search)
        if not found and not seen.errors:
            known = [search.name for search in seen.searches]
            raise no_search(name, known, f"in {storage}, at a job server or under Slurm")
    for error in seen.errors:
        print(f"kdsearch: {error}", file=sys.stderr)
    if seen.errors:
        raise typer.Exit(2)


def _searches_table(searches: "list[SeenSearch]") -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("search", "where", "state", "since", "progress", "cost"):
        table.add_column(column, overflow="fold")
    for search in searches:
        known = ("", "") if search.record is None else _progress(search.record)
        since = f"{search.since.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(search.name, search.where, search.state, since, *known)
    return table


def _progress(record: "SearchRecord") -> tuple[str, str]:
    """How far a search is, and what it has cost."""
    from search.leaderboard.progress import how_far

    if record.reproduces:
        runs = sum(len(row.runs) for row in record.confirmed)
        return f"{runs} runs to reproduce {record.reproduces}", ""
    return how_far(record), record.cost


def _machines_table(machines: "list[MachineLoad]") -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("machine", "where", "in use", "load of cores", "memory", "GPUs"):
        table.add_column(column, overflow="fold")
    for machine in machines:
        load = "" if machine.load is None else f"{machine.load:.1f} of {machine.cores}"
        memory = ""
        if machine.memory is not None and machine.memory_used is not None:
            memory = f"{machine.memory_used / 2**30:.0f} of {machine.memory / 2**30:.0f} GiB"
        gpus = "\n".join(machine.gpus)
        table.add_row(machine.name, machine.where, machine.trials, load, memory, gpus)
    return table


def _show(search: "SeenSearch") -> None:
    """Prints what is known of a search."""
    from search.leaderboard.tables import leaderboard_table

    ended = f", ended {search.ended.astimezone():%Y-%m-%d %H:%M}" if search.ended else ""
    print(
        f"search   {search.name}: {search.state}\n"
        f"where    {search.where}, since {search.since.astimezone():%Y-%m-%d %H:%M}{ended}\n"
        f"storage  {search.storage}"
    )
    record = search.record
    if record is None:
        print("trials   none that can be read from here")
        return
    if record.sharing is not None:
        print(f"share    {record.sharing}")
    progress, cost = _progress(record)
    print(f"trials   {progress}\ncost     {cost}")
    console().print(leaderboard_table(record))
