"""The leaderboard: trials ranked by held-out accuracy, with teacher and control always shown."""

import csv
import io
import json
from dataclasses import asdict, dataclass, fields

import pyarrow as pa
from pyarrow import parquet
from rich.box import SIMPLE_HEAD
from rich.table import Table

from search.record import SearchRecord, TrialRecord

FORMATS = ("table", "json", "csv", "parquet")


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard.

    Args:
        rank: from 1 among the trials with an accuracy; none for the teacher.
        trial: the trial's number; none for the teacher.
        objective: the methods with their searched settings; `none` is the control.
        heldout_accuracy: of the best epoch, a share of 1.
        gain: over the control, a share of 1; none without a finished control.
        epochs: how many were trained, like `6/12`.
        seconds: of training.
        status: finished, stopped, failed, interrupted, running; `teacher` for the teacher.
    """

    rank: int | None
    trial: int | None
    objective: str
    heldout_accuracy: float | None
    gain: float | None
    epochs: str
    seconds: float | None
    status: str


def rank(trials: tuple[TrialRecord, ...]) -> list[TrialRecord]:
    """Trials by accuracy, equal ones by loss, then as they started; without an accuracy, last."""
    return sorted(
        trials,
        key=lambda trial: (
            -(trial.heldout_accuracy if trial.heldout_accuracy is not None else -1.0),
            trial.heldout_loss if trial.heldout_loss is not None else float("inf"),
            trial.number,
        ),
    )


def leaderboard(record: SearchRecord) -> list[Row]:
    """The teacher, then every trial in order of rank."""
    control = record.control.heldout_accuracy if record.control is not None else None

    def gain(accuracy: float | None) -> float | None:
        return None if accuracy is None or control is None else accuracy - control

    rows = []
    if record.teacher_metrics:
        accuracy = record.teacher_metrics["heldout_accuracy"]
        name = record.experiment.teacher.backbone
        rows.append(
            Row(None, None, f"teacher {name}", accuracy, gain(accuracy), "", None, "teacher")
        )
    for position, trial in enumerate(rank(record.trials), start=1):
        rows.append(
            Row(
                rank=position if trial.heldout_accuracy is not None else None,
                trial=trial.number,
                objective=trial.objective,
                heldout_accuracy=trial.heldout_accuracy,
                gain=None if trial.is_control else gain(trial.heldout_accuracy),
                epochs=f"{trial.epochs_done}/{trial.epochs}",
                seconds=round(trial.train_seconds, 3),
                status=trial.state if not trial.reason else f"{trial.state}: {trial.reason}",
            )
        )
    return rows


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def points(gain: float | None) -> str:
    return "" if gain is None else f"{100 * gain:+.2f}"


def as_table(record: SearchRecord) -> Table:
    """The leaderboard for a terminal; accuracies in percent, gains in percentage points."""
    table = Table(
        title=f"{record.name} ({record.state})",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("rank", "trial"):
        table.add_column(column, justify="right")
    table.add_column("objective", overflow="fold")
    for column in ("held-out %", "gain", "epochs", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    styles = {"teacher": "cyan", "finished": "", "running": "green"}
    for row in leaderboard(record):
        status = row.status.partition(":")[0]
        control = row.objective == "none"
        table.add_row(
            str(row.rank or ""),
            "" if row.trial is None else str(row.trial),
            f"{row.objective} (control)" if control else row.objective,
            percent(row.heldout_accuracy),
            points(row.gain),
            row.epochs,
            "" if row.seconds is None else f"{row.seconds:.1f}",
            row.status,
            style="bold" if control else styles.get(status, "dim"),
        )
    return table


def as_bytes(record: SearchRecord, form: str) -> bytes:
    """The leaderboard as `json`, `csv` or `parquet`; accuracies and gains as shares of 1."""
    rows = [asdict(row) for row in leaderboard(record)]
    if form == "json":
        return (json.dumps(rows, indent=1) + "\n").encode()
    names = [field.name for field in fields(Row)]
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    schema = pa.schema(
        [
            ("rank", pa.int32()),
            ("trial", pa.int32()),
            ("objective", pa.string()),
            ("heldout_accuracy", pa.float64()),
            ("gain", pa.float64()),
            ("epochs", pa.string()),
            ("seconds", pa.float64()),
            ("status", pa.string()),
        ]
    )
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()
