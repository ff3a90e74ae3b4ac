"""The story of a search, for its page in MLflow: summary, leaderboard and pictures.

They are made in a process of their own, from a copy of the search's record, and at the lowest
priority while trials run: drawing takes seconds, and neither its time nor its errors may reach the
search.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from search.leaderboard import (
    WINNERS_CURSE,
    as_markdown,
    by_test_accuracy,
    gain_in_words,
    leaderboard,
    percent,
    points,
    rank,
    spread,
)
from search.record import Confirmed, SearchRecord, TrialRecord

_SECONDS_BETWEEN = 60.0
# A report that takes longer than this at the end of a search is not waited for.
_PATIENCE_SECONDS = 300.0

SUMMARY, TABLE = "summary.md", "leaderboard.json"

# MLflow keeps at most 8,000 characters, and the addresses of the pictures come after them.
_MOST_ROWS = 12
_MOST_CHARACTERS = 5500


class Reporter:
    """Has a search's report made again and again while it runs.

    Args:
        folder: of the report; made where it is missing.
        ready: is told when a report lies in the folder.
    """

    def __init__(self, folder: Path, ready: Callable[[], None]) -> None:
        self._folder, self._ready = folder, ready
        self._input = folder.with_suffix(".json")
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = time.monotonic()

    def update(self, record: SearchRecord) -> None:
        """Begins a new report where the last one is a minute old; returns at once."""
        self._collect()
        if self._process is None and time.monotonic() - self._begun > _SECONDS_BETWEEN:
            self._begin(record)

    def finish(self, record: SearchRecord) -> None:
        """Waits for the last report, of the search as it ended; Ctrl-C ends the waiting."""
        self._stop()
        if not record.trials:
            return
        self._begin(record, niceness=0)
        try:
            if self._process is not None:
                self._process.wait(_PATIENCE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            print("the report was not waited for any longer", file=sys.stderr)
        self._collect()
        self._stop()

    def _stop(self) -> None:
        """Ends a report that is being made; each of its files is whole, old or new."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _begin(self, record: SearchRecord, niceness: int = 19) -> None:
        self._begun = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._input.write_text(record.model_dump_json())
            arguments = [str(self._input), str(self._folder), str(niceness)]
            # In a group of its own: Ctrl-C ends the search, and its last report is still drawn.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "search.report", *arguments],
                stdin=subprocess.DEVNULL,
                process_group=0,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            print(f"no report: {error}", file=sys.stderr)

    def _collect(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            if self._process.returncode == 0:
                self._ready()
            self._process = None


def write_report(record: SearchRecord, folder: Path) -> None:
    """Writes summary, table and pictures; a picture that cannot be drawn is told of and left out.

    Args:
        record: the search.
        folder: for the files; each appears whole, and is touched only where it has changed.
    """
    _write(folder / SUMMARY, summary(record).encode())
    _write(folder / TABLE, _table(record))
    from search.plots import DRAWINGS, png

    for name, drawing in DRAWINGS.items():
        try:
            content = png(drawing, record)
        except Exception:
            print(f"no picture {name} of {record.name}:", file=sys.stderr)
            traceback.print_exc()
            continue
        if content is not None:
            _write(folder / f"{name}.png", content)


def _write(file: Path, content: bytes) -> None:
    if not file.exists() or file.read_bytes() != content:
        partial = file.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(file)


def summary(record: SearchRecord) -> str:
    """The search in a few sentences of Markdown, with the head of its leaderboard."""
    ranked = [trial for trial in rank(record.trials) if trial.heldout_accuracy is not None]
    parts = [f"{'**Still running.** ' if record.state == 'running' else ''}{_states(record)}"]
    if ranked:
        parts.insert(0, _best(record, ranked[0]))
    confirmed = [each for each in by_test_accuracy(record.confirmed) if each.is_confirmed]
    if confirmed:
        parts.insert(0, _confirmed(record, confirmed[0]))
    rows = leaderboard(record)[:_MOST_ROWS]
    while len(table := _spaced(as_markdown(record, rows))) > _MOST_CHARACTERS:
        rows = rows[:-1]
    parts.append(table)
    if len(rows) <= len(record.trials):
        parts.append(
            f"`kdsearch leaderboard {record.name}` and the artifact {TABLE} have all "
            f"{len(record.trials)} trials."
        )
    return "\n\n".join(parts)


def _spaced(table: str) -> str:
    """A Markdown table with room between its columns, which MLflow's pages give it none of."""
    head, rule, *rows = table.strip().splitlines()
    wide = [line.replace(" |", "&nbsp;&nbsp; |") for line in (head, *rows)]
    return "\n".join((wide[0], rule, *wide[1:]))


def _best(record: SearchRecord, best: TrialRecord) -> str:
    """What the best trial reached, beside control and teacher."""
    experiment = record.experiment
    unfinished = "" if best.state == "finished" else f" ({best.state} at epoch {best.epochs_done})"
    text = (
        f"**{best.student}** with **{best.objective}** reaches **{percent(best.heldout_accuracy)} "
        f"%** on the held-out images of {experiment.data.name} (trial {best.number}{unfinished})."
    )
    control = record.control_of(best.student)
    teacher = record.teacher_metrics.get("heldout_accuracy")
    if control is None or control.heldout_accuracy is None:
        text += " Its control has not finished, so there is no gain to tell yet."
    else:
        text += f" Without a teacher it reaches {percent(control.heldout_accuracy)} %"
        gain = record.gain(best)
        text += "." if gain is None else f": distillation gives {points(gain)} percentage points."
    if teacher is not None:
        text += f" The teacher {experiment.teacher.backbone} has {percent(teacher)} %"
        share = gap_closed(record, best)
        text += "." if share is None else f"; {100 * share:.0f} % of the gap to it is closed."
    return text + " One seed proves little: a few tenths of a point can be chance."


def _confirmed(record: SearchRecord, best: Confirmed) -> str:
    """What fresh seeds say of the best confirmed student."""
    gain = gain_in_words(record.confirmed_gain(best))
    return (
        f"Trained again with {len(best.test_accuracies)} fresh seeds, **{best.student}** with "
        f"**{best.objective}** reaches **{spread(best.test_accuracy, best.test_deviation)} %** on "
        f"the test split"
        + (f"; its gain over the control, in points: {gain}. " if gain else ". ")
        + WINNERS_CURSE
    )


def gap_closed(record: SearchRecord, trial: TrialRecord) -> float | None:
    """The share of the distance between control and teacher that a trial covers; none where the
    teacher is no better than the control, and before there is anything to compare."""
    gain, control = record.gain(trial), record.control_of(trial.student)
    teacher = record.teacher_metrics.get("heldout_accuracy")
    if gain is None or control is None or control.heldout_accuracy is None or teacher is None:
        return None
    gap = teacher - control.heldout_accuracy
    return gain / gap if gap > 0 else None


def _states(record: SearchRecord) -> str:
    """How the trials ended, what stopping saved, and what all cost."""
    trials = record.trials
    states = ("finished", "stopped", "failed", "interrupted", "running")
    counts = {state: sum(trial.state == state for trial in trials) for state in states}
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    text = f"Of {record.experiment.search.trials} trials: {words or 'none has begun'}."
    stopped = [trial for trial in trials if trial.state == "stopped"]
    if stopped:
        saved = sum(trial.epochs - trial.epochs_done for trial in stopped)
        budget = sum(trial.epochs for trial in trials)
        text += (
            f" Early stopping saved {saved:,} of their {budget:,} epochs "
            f"({100 * saved / budget:.0f} %)."
        )
    text += f" Cost: {record.cost}."
    return text + (f" The search ended early: {record.ended}." if record.ended else "")


def _table(record: SearchRecord) -> bytes:
    """The leaderboard in the form that MLflow's pages show as a table."""
    columns = ["rank", "trial", "student", "objective", "test %", "held-out %", "gain"]
    columns += ["parameters", "latency ms", "epochs", "seconds", "status"]
    data = [
        [
            *("" if number is None else number for number in (row.rank, row.trial)),
            *(row.student, row.objective, spread(row.test_accuracy, row.test_deviation)),
            *(percent(row.heldout_accuracy), points(row.gain)),
            *("" if number is None else number for number in (row.parameters, row.latency_ms)),
            *(row.epochs, "" if row.seconds is None else row.seconds, row.status),
        ]
        for row in leaderboard(record)
    ]
    return json.dumps({"columns": columns, "data": data}).encode()


def main(record: Path, folder: Path, niceness: int) -> None:
    """Makes a report from a record's file."""
    os.nice(niceness)
    write_report(SearchRecord.model_validate_json(record.read_text()), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
