"""A search again, under other early stopping: what it would have cost, and what it would have lost.

The learning curves are those that were recorded, so nothing is trained. Trials begin in the order
of their numbers, each as soon as a place is free, and take as long as they took.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.table import Table

from search.experiment.schema import Asha
from search.record.record import SearchRecord
from search.record.wording import percent, points
from search.stopping.rungs import Rungs

Curves = Mapping[int, Sequence[float]]
"""By trial, the held-out accuracy of each epoch."""


class Rule(Protocol):
    """What stops trials early."""

    def add(self, trial: int, epoch: int, best_accuracy: float) -> None:
        """Notes the best accuracy so far of a trial after an epoch."""

    def keeps(self, trial: int, epoch: int) -> bool:
        """Whether a trial goes on after an epoch."""


def simulate(
    curves: Curves,
    rule: Rule,
    *,
    slots: int,
    spared: Collection[int] = (),
    epoch_seconds: Mapping[int, float] | None = None,
) -> dict[int, int]:
    """Runs trials on so many places, in the order of the curves.

    Args:
        curves: of whole trials.
        rule: is told each epoch, and asked after it.
        slots: how many trials run at a time.
        spared: trials that are never stopped.
        epoch_seconds: by trial, how long an epoch takes; none: all take equally long.

    Returns:
        By trial, how many epochs it ran.
    """
    waiting = iter(curves)
    ran: dict[int, int] = {}
    reports: list[tuple[float, int]] = []  # when, and by which trial, the next epoch ends

    def seconds(trial: int) -> float:
        return epoch_seconds[trial] if epoch_seconds else 1.0

    def begin(now: float) -> None:
        trial = next(waiting, None)
        if trial is not None:
            ran[trial] = 0
            heapq.heappush(reports, (now + seconds(trial), trial))

    best = {trial: list(accumulate(curve, max)) for trial, curve in curves.items()}
    for _ in range(slots):
        begin(0.0)
    while reports:
        now, trial = heapq.heappop(reports)
        ran[trial] = epoch = ran[trial] + 1
        rule.add(trial, epoch, best[trial][epoch - 1])
        if epoch < len(curves[trial]) and (trial in spared or rule.keeps(trial, epoch)):
            heapq.heappush(reports, (now + seconds(trial), trial))
        else:
            begin(now)
    return ran


@dataclass(frozen=True)
class Outcome:
    """What a search would have come to.

    Args:
        asha: the settings; none: the search as it was.
        epochs: that would have been trained.
        finished: trials that would have come to their last epoch.
        best_accuracy: of these, a share of 1.
        winner_kept: whether that is the best accuracy of the search as it was.
        unknown: trials that would have gone on longer than they did; their epochs are too few here.
    """

    asha: Asha | None
    epochs: int
    finished: int
    best_accuracy: float
    winner_kept: bool
    unknown: int


def replay(record: SearchRecord, settings: Iterable[Asha], slots: int) -> list[Outcome]:
    """What a search came to, then what it would have come to under each setting.

    Args:
        record: of a search; the curves of trials that failed or were cut off are left out.
        settings: of early stopping.
        slots: how many trials run at a time.

    Raises:
        ValueError: no trial has run to its end.
    """
    trials = [t for t in record.trials if t.state in ("finished", "stopped") and t.accuracies]
    whole = {trial.number for trial in trials if trial.state == "finished"}
    if not whole:
        raise ValueError(f"search {record.name!r} has no finished trial with a learning curve")
    curves = {trial.number: trial.accuracies for trial in trials}
    best = max(max(curves[number]) for number in whole)
    outcomes = [
        Outcome(None, sum(map(len, curves.values())), len(whole), best, winner_kept=True, unknown=0)
    ]
    for asha in settings:
        rungs = Rungs(asha, epochs=record.experiment.training.epochs)
        ran = simulate(
            curves,
            rungs,
            slots=slots,
            spared={trial.number for trial in trials if trial.is_control},
            epoch_seconds={t.number: t.train_seconds / t.epochs_done for t in trials},
        )
        to_the_end = [number for number in curves if ran[number] == len(curves[number])]
        finished = [number for number in to_the_end if number in whole]
        cut = [number for number in to_the_end if number not in whole]
        reached = max((max(curves[number]) for number in finished), default=0.0)
        outcomes.append(
            Outcome(
                asha,
                sum(ran.values()),
                len(finished),
                reached,
                winner_kept=reached == best,
                unknown=sum(rungs.keeps(number, ran[number]) for number in cut),
            )
        )
    return outcomes


def replay_table(name: str, outcomes: Sequence[Outcome]) -> Table:
    """The outcomes for a terminal."""
    table = Table(
        title=f"{name} under other settings of search.asha",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    columns = ("grace_epochs", "reduction", "epochs", "saved", "finished", "held-out %", "lost")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("winner")
    actual = outcomes[0]
    for outcome in outcomes:
        unknown = f", {outcome.unknown} trials unknown beyond their end" if outcome.unknown else ""
        table.add_row(
            "as it was" if outcome.asha is None else str(outcome.asha.grace_epochs),
            "" if outcome.asha is None else f"{outcome.asha.reduction:g}",
            f"{outcome.epochs:,}",
            f"{100 * (1 - outcome.epochs / actual.epochs):.0f} %",
            str(outcome.finished),
            percent(outcome.best_accuracy),
            "" if outcome.winner_kept else points(outcome.best_accuracy - actual.best_accuracy),
            ("kept" if outcome.winner_kept else "lost") + unknown,
        )
    return table
