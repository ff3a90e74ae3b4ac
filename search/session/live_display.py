"""What a user sees while a search runs: a live display in a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdcore.training.report import EpochReport
from search.leaderboard.progress import how_far
from search.record.record import SearchRecord, TrialRecord
from search.record.wording import duration, percent, points


class LiveDisplay:
    """Shows the progress of a search: live in a terminal, else one line per event.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._started = time.monotonic()
        self._record: SearchRecord | None = None
        self._ended_before, self._share_before = 0, 0.0

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

    def teacher_epoch(self, report: EpochReport) -> None:
        self.say(
            f"teacher: epoch {report.epoch}/{report.epochs}, "
            f"held-out {percent(report.heldout_accuracy)} %"
        )

    def search_started(self, record: SearchRecord) -> None:
        """Starts the clock of the trials; earlier sessions do not count in the pace."""
        self._started = time.monotonic()
        self._ended_before = sum(not trial.unfinished for trial in record.trials)
        self._share_before = self._share_done(record)

    def update(self, record: SearchRecord) -> None:
        """Shows the search's present state."""
        self._record = record

    def trial_ended(self, trial: TrialRecord, record: SearchRecord) -> None:
        """Says how a trial ended."""
        self._record = record
        if self._live is None:
            reason = f" ({trial.reason})" if trial.reason else ""
            self.say(
                f"trial {trial.number} {trial.state}{reason} after {trial.epochs_done} of "
                f"{trial.epochs} epochs: held-out {percent(trial.heldout_accuracy) or '-'} %, "
                f"{record.words(trial)} | {self._summary(record)}"
            )

    def _share_done(self, record: SearchRecord) -> float:
        total = record.experiment.search.trials
        running = sum(t.epochs_done / t.epochs for t in record.trials if t.unfinished)
        ended = sum(not trial.unfinished for trial in record.trials)
        return min(1.0, (ended + running) / total)

    def _summary(self, record: SearchRecord) -> str:
        elapsed = time.monotonic() - self._started
        ended = sum(not trial.unfinished for trial in record.trials) - self._ended_before
        parts = [how_far(record), record.cost]
        if ended:
            parts.append(f"{60 * ended / elapsed:.1f} trials/min")
        share = self._share_done(record)
        gained = share - self._share_before
        if gained > 0 and share < 1:
            parts.append(f"about {duration(elapsed * (1 - share) / gained)} left")
        return " | ".join(parts)

    def _render(self) -> RenderableType:
        record = self._record
        if record is None:
            return Text("starting ...")
        table = Table.grid(padding=(0, 2))
        for trial in record.trials:
            if trial.state == "running":
                accuracy = trial.heldout_accuracy
                table.add_row(
                    f"trial {trial.number}",
                    ProgressBar(total=trial.epochs, completed=trial.epochs_done, width=16),
                    f"{trial.epochs_done}/{trial.epochs}",
                    f"{percent(accuracy)} %" if accuracy is not None else "",
                    points(record.gain(trial)),
                    record.words(trial),
                )
        whole = Table.grid()  # a bar alone ends without a new line
        whole.add_row(ProgressBar(total=1.0, completed=self._share_done(record), width=60))
        return Group(Text(f"{record.name}: {self._summary(record)}"), whole, table)
