"""Replays a search's recorded learning curves under other rules and settings of early stopping.

Nothing is trained. Trials start in the order of their numbers, each as soon as a slot is free, and
take as long as they took.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.box import SIMPLE_HEAD
from rich.table import Table

from search.errors import SearchError
from search.experiment.search_config import Median, StoppingSettings
from search.record.record import SearchRecord
from search.record.wording import METRIC_HEADS, percent, points
from search.stopping.named import rule_of
from search.stopping.rule import StoppingRule

Curves = Mapping[int, Sequence[float]]
"""The held-out accuracies of each trial, by number, after each of its epochs."""


def simulate(
    curves: Curves,
    rule: StoppingRule,
    *,
    slots: int,
    spared: Collection[int] = (),
    epoch_seconds: Mapping[int, float] | None = None,
    on_top: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """Runs trials in the order of the curves, several at a time.

    Args:
        curves: the trials' whole curves.
        rule: is told of every epoch, and asked after it.
        slots: number of trials that run at a time.
        spared: trials that are never stopped.
        epoch_seconds: duration of an epoch, by trial; None: the same for all.
        on_top: number of first epochs that the rule does not count, by trial; None: none.

    Returns:
        The number of epochs that each trial ran.
    """
    waiting = iter(curves)
    ran: dict[int, int] = {}
    reports: list[tuple[float, int]] = []  # when the next epoch ends, and of which trial

    def seconds(trial: int) -> float:
        return epoch_seconds[trial] if epoch_seconds else 1.0

    def start_next(now: float) -> None:
        trial = next(waiting, None)
        if trial is not None:
            ran[trial] = 0
            heapq.heappush(reports, (now + seconds(trial), trial))

    best = {trial: list(accumulate(curve, max)) for trial, curve in curves.items()}
    for _ in range(slots):
        start_next(0.0)
    while reports:
        now, trial = heapq.heappop(reports)
        ran[trial] = epoch = ran[trial] + 1
        judged = epoch - (on_top[trial] if on_top else 0)
        rule.add(trial, judged, best[trial][epoch - 1], curves[trial][epoch - 1])
        if epoch < len(curves[trial]) and (trial in spared or rule.keeps(trial, judged)):
            heapq.heappush(reports, (now + seconds(trial), trial))
        else:
            start_next(now)
    return ran


@dataclass(frozen=True)
class Outcome:
    """How a search would have ended.

    Args:
        settings: of early stopping; None for the search as it was.
        epochs: number of epochs that would have been trained.
        finished: number of trials that would have reached their last epoch.
        best_accuracy: the best accuracy among them, or what else is ranked by, from 0 to 1.
        best_found: whether that is also the best of the search as it was.
        unknown: number of trials that would have run longer than they did; their epochs are
            counted only as far as they were recorded.
    """

    settings: StoppingSettings | None
    epochs: int
    finished: int
    best_accuracy: float
    best_found: bool
    unknown: int


def replay(record: SearchRecord, settings: Iterable[StoppingSettings], slots: int) -> list[Outcome]:
    """How a search ended, followed by how it would have ended under each of the settings.

    Args:
        record: the search; trials that failed or were interrupted are left out.
        settings: the settings of early stopping; as in a search that begins, they compare the
            trials of each student where nothing else is said.
        slots: number of trials that run at a time.

    Raises:
        SearchError: no trial has finished.
    """
    trials = [t for t in record.trials if t.state in ("finished", "stopped") and t.accuracies]
    whole = {trial.number for trial in trials if trial.state == "finished"}
    if not whole:
        raise SearchError(f"no trial of {record.name} has finished, so there is nothing to replay")
    curves = {trial.number: trial.curve for trial in trials}
    on_top = {trial.number: trial.epochs_on_top for trial in trials}
    students = {trial.number: trial.student for trial in trials}
    best = max(max(curves[number]) for number in whole)
    outcomes = [
        Outcome(None, sum(map(len, curves.values())), len(whole), best, best_found=True, unknown=0)
    ]
    for each in settings:
        epochs = record.experiment.training.epochs
        rule = rule_of(each.by_student(), epochs=epochs, student_of=students.__getitem__)
        ran = simulate(
            curves,
            rule,
            slots=slots,
            spared={trial.number for trial in trials if trial.is_control},
            epoch_seconds={t.number: t.train_seconds / t.epochs_done for t in trials},
            on_top=on_top,
        )
        completed = [number for number in curves if ran[number] == len(curves[number])]
        finished = [number for number in completed if number in whole]
        cut = [number for number in completed if number not in whole]
        reached = max((max(curves[number]) for number in finished), default=0.0)
        outcomes.append(
            Outcome(
                each,
                sum(ran.values()),
                len(finished),
                reached,
                best_found=reached == best,
                unknown=sum(rule.keeps(trial, ran[trial] - on_top[trial]) for trial in cut),
            )
        )
    return outcomes


def replay_table(record: SearchRecord, outcomes: Sequence[Outcome]) -> Table:
    """The outcomes of a search for a terminal."""
    table = Table(
        title=f"{record.name} under other early stopping",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("stopping")
    columns = ("grace_epochs", "reduction", "epochs", "saved", "finished")
    for column in (*columns, f"held-out {METRIC_HEADS.get(record.metric, '%')}", "lost"):
        table.add_column(column, justify="right")
    table.add_column("winner")
    actual = outcomes[0]
    for outcome in outcomes:
        unknown = f", {outcome.unknown} trials would have run longer" if outcome.unknown else ""
        table.add_row(
            *_rule_in_words(outcome.settings),
            f"{outcome.epochs:,}",
            f"{100 * (1 - outcome.epochs / actual.epochs):.0f} %",
            str(outcome.finished),
            percent(outcome.best_accuracy),
            "" if outcome.best_found else points(outcome.best_accuracy - actual.best_accuracy),
            ("kept" if outcome.best_found else "lost") + unknown,
        )
    return table


def _rule_in_words(settings: StoppingSettings | None) -> tuple[str, str, str]:
    """The rule, its grace epochs, its reduction."""
    if settings is None:
        return "as it was", "", ""
    reduction = "" if isinstance(settings, Median) else f"{settings.reduction:g}"
    return type(settings).__name__.lower(), str(settings.grace_epochs), reduction
