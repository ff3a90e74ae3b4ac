"""What a user sees while a search runs: a live display in a terminal, plain lines elsewhere."""

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdcore.training.report import EpochReport
from search.leaderboard.progress import how_far
from search.record.live_record import LiveRecord
from search.record.record import TrialRecord
from search.record.wording import duration, percent, percent_of, points


class LiveDisplay:
    """Shows the progress of a search: live in a terminal, else one line per event.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._started = time.monotonic()
        self._search: LiveRecord | None = None
        self._ended_before, self._share_before = 0, 0.0
        self._retraining: _Runs | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # A callable is asked again at every refresh, so that the clock moves on its own.
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=4,
                transient=True,
                # What libraries print has a log of its own.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def teacher_epoch(self, name: str, report: EpochReport, split: str) -> None:
        accuracy = percent(report.heldout_accuracy)
        self.say(f"{name}: epoch {report.epoch}/{report.epochs}, {split} {accuracy} %")

    def search_started(self, search: LiveRecord) -> None:
        """Starts the clock of the trials; earlier sessions do not count in the pace."""
        self._search = search
        self._started = time.monotonic()
        self._ended_before = search.ended
        self._share_before = self._share_done(search)

    def retraining_started(self, name: str, runs: int) -> None:
        """Starts the clock of so many runs, which are all that is shown from here on."""
        self._retraining = _Runs(name, runs)

    def run_ended(self, text: str) -> None:
        """Says how a run ended, and how far they are."""
        assert self._retraining is not None
        self._retraining.ended += 1
        self.say(f"{text} | {self._retraining}")

    def trial_ended(self, trial: TrialRecord, search: LiveRecord) -> None:
        """Says how a trial ended."""
        if self._live is None:
            reason = f" ({trial.reason})" if trial.reason else ""
            self.say(
                f"trial {trial.number} {trial.state}{reason} after {trial.epochs_done} of "
                f"{trial.epochs} epochs: held-out {percent_of(search.head.metric, trial.score)}, "
                f"{search.head.words(trial)} | {self._summary(search)}"
            )

    def _share_done(self, search: LiveRecord) -> float:
        going_on = sum(t.epochs_done / t.epochs for t in list(search.running.values()))
        return min(1.0, (search.ended + going_on) / search.head.experiment.search.trials)

    def _summary(self, search: LiveRecord) -> str:
        elapsed = time.monotonic() - self._started
        ended = search.ended - self._ended_before
        parts = [how_far(search), search.head.cost]
        if ended:
            parts.append(f"{60 * ended / elapsed:.1f} trials/min")
        share = self._share_done(search)
        gained = share - self._share_before
        if gained > 0 and share < 1:
            parts.append(f"about {duration(elapsed * (1 - share) / gained)} left")
        return " | ".join(parts)

    def _render(self) -> RenderableType:
        """Called by a thread of its own."""
        if (runs := self._retraining) is not None and runs.ended < runs.planned:
            whole = Table.grid()  # a bar alone ends without a new line
            whole.add_row(ProgressBar(total=runs.planned, completed=runs.ended, width=60))
            return Group(Text(f"{runs.name}: {runs}"), whole)
        search = self._search
        if search is None:
            return Text("starting ...")
        table = Table.grid(padding=(0, 2))
        for trial in sorted(search.running.values(), key=lambda each: each.number):
            table.add_row(
                f"trial {trial.number}",
                ProgressBar(total=trial.epochs, completed=trial.epochs_done, width=16),
                f"{trial.epochs_done}/{trial.epochs}",
                f"{percent(trial.score)} %" if trial.score is not None else "",
                points(search.gain(trial)),
                search.head.words(trial),
            )
        whole = Table.grid()
        whole.add_row(ProgressBar(total=1.0, completed=self._share_done(search), width=60))
        return Group(Text(f"{search.head.name}: {self._summary(search)}"), whole, table)


@dataclass
class _Runs:
    """How far a retraining is.

    Args:
        name: of its record.
        planned: number of runs.
        ended: number of those that have ended.
        started: when, on the monotonic clock.
    """

    name: str
    planned: int
    ended: int = 0
    started: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        words = f"{self.ended} of {self.planned} runs"
        left = self.planned - self.ended
        if not self.ended or not left:
            return words
        seconds = (time.monotonic() - self.started) * left / self.ended
        return f"{words}, about {duration(seconds)} left"
