"""The leaderboard: trials ranked by held-out accuracy, with teacher and control always shown."""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import pyarrow as pa
from pyarrow import parquet
from rich.box import SIMPLE_HEAD
from rich.table import Table

from kdcore.measure import BATCH
from kdcore.suggestion import did_you_mean
from search.experiment import CONTROL
from search.paired import PairedGain
from search.record import Confirmed, SearchRecord, TrialRecord


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard.

    Args:
        rank: from 1 among the trials with an accuracy; none for the teacher.
        trial: the trial's number; none for the teacher.
        student: the network that learns; the teacher's name in its row.
        objective: the methods with their searched settings; `none` is the control.
        heldout_accuracy: of the best epoch, a share of 1.
        test_accuracy: of a confirmed student, the mean over its fresh seeds, a share of 1.
        test_deviation: the standard deviation over them.
        seeds: how many they are.
        gain: over the same student's control, a share of 1; the teacher's over the best control;
            none without a finished control.
        parameters: of the network; none where it was not measured.
        latency_ms: median milliseconds for one image, where the trials run.
        epochs: how many were trained, like `6/12`.
        seconds: of training.
        status: finished, stopped, failed, interrupted, running; whether batches had to be parted;
            why it failed; `teacher` for the teacher.
    """

    rank: int | None
    trial: int | None
    student: str
    objective: str
    heldout_accuracy: float | None
    test_accuracy: float | None
    test_deviation: float | None
    seeds: int | None
    gain: float | None
    parameters: int | None
    latency_ms: float | None
    epochs: str
    seconds: float | None
    status: str


def rank(
    trials: tuple[TrialRecord, ...], confirmed: tuple[Confirmed, ...] = ()
) -> list[TrialRecord]:
    """Confirmed trials by their mean accuracy on the test split; then the others by accuracy, equal
    ones by loss, then as they started; without an accuracy, last."""
    tested = {each.trial: each.test_accuracy for each in confirmed if each.is_confirmed}
    return sorted(
        trials,
        key=lambda trial: (
            -tested.get(trial.number, -1.0),
            -(trial.heldout_accuracy if trial.heldout_accuracy is not None else -1.0),
            trial.heldout_loss if trial.heldout_loss is not None else float("inf"),
            trial.number,
        ),
    )


def leaderboard(record: SearchRecord, method: str = "", state: str = "") -> list[Row]:
    """The teacher, then every trial in order of rank.

    Args:
        record: the search.
        method: leaves only trials with this method among theirs; `none` leaves the controls.
        state: leaves only trials in this state.

    Raises:
        ValueError: the search has no such method.
    """
    methods = {name for slot in record.experiment.objective for name in slot}
    if method and method not in methods:
        hint = did_you_mean(method, sorted(methods))
        raise ValueError(
            f"{record.name} has no method {method!r}{hint} It has {', '.join(sorted(methods))}"
        )
    numbers = {
        trial.number
        for trial in record.trials
        if (not method or method in trial.methods.split(" + ")) and state in ("", trial.state)
    }
    return [
        row
        for row in _all_rows(record)
        if row.trial in numbers or (row.trial is None and not method and not state)
    ]


def _all_rows(record: SearchRecord) -> list[Row]:
    rows = []
    if record.teacher_metrics:
        accuracy = record.teacher_metrics["heldout_accuracy"]
        controls = [record.control_of(student) for student in record.experiment.students]
        best = max((c.heldout_accuracy or 0.0 for c in controls if c is not None), default=None)
        rows.append(
            Row(
                rank=None,
                trial=None,
                student=record.experiment.teacher.backbone,
                objective="teacher",
                heldout_accuracy=accuracy,
                test_accuracy=None,
                test_deviation=None,
                seeds=None,
                gain=None if best is None else accuracy - best,
                parameters=None,
                latency_ms=None,
                epochs="",
                seconds=None,
                status="teacher",
            )
        )
    confirmed = {each.trial: each for each in record.confirmed if each.is_confirmed}
    for position, trial in enumerate(rank(record.trials, record.confirmed), start=1):
        again = confirmed.get(trial.number)
        cost = record.student_costs.get(trial.student)
        rows.append(
            Row(
                rank=position if trial.heldout_accuracy is not None else None,
                trial=trial.number,
                student=trial.student,
                objective=trial.objective,
                heldout_accuracy=trial.heldout_accuracy,
                test_accuracy=None if again is None else again.test_accuracy,
                test_deviation=None if again is None else again.test_deviation,
                seeds=None if again is None else len(again.test_accuracies),
                gain=record.gain(trial),
                parameters=None if cost is None else cost.parameters,
                latency_ms=None if cost is None else cost.latency_ms,
                epochs=f"{trial.epochs_done}/{trial.epochs}",
                seconds=round(trial.train_seconds, 3),
                status=_status(trial),
            )
        )
    return rows


def _status(trial: TrialRecord) -> str:
    parts = f", batches in {trial.parts} parts" if trial.parts > 1 else ""
    reason = f": {trial.reason}" if trial.reason else ""
    return f"{trial.state}{parts}{reason}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def spread(mean: float | None, deviation: float | None) -> str:
    """Mean and standard deviation in percent, like `96.41 ± 0.20`."""
    return "" if deviation is None else f"{percent(mean)} ± {100 * deviation:.2f}"


def points(gain: float | None) -> str:
    return "" if gain is None else f"{100 * gain:+.2f}"


def as_table(record: SearchRecord, method: str = "", state: str = "") -> Table:
    """The leaderboard for a terminal; accuracies in percent, gains in percentage points.

    Students have columns where there are several, else a line below. Method and state leave rows
    out, as `leaderboard` does.
    """
    several = len(record.experiment.students) > 1
    table = Table(
        title=f"{record.name} ({record.state})",
        title_justify="left",
        title_style="bold",
        caption=None if several else _costs(record),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("rank", "trial"):
        table.add_column(column, justify="right")
    if several:
        table.add_column("student", overflow="fold")
    table.add_column("objective", overflow="fold")
    confirmed = any(each.is_confirmed for each in record.confirmed)
    tested = ["test %"] if confirmed else []
    numbers = [*tested, "held-out %", "gain", *(["parameters", "ms"] if several else [])]
    for column in (*numbers, "epochs", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    styles = {"teacher": "cyan", "finished": "", "running": "green"}
    for row in leaderboard(record, method, state):
        status = re.split("[:,]", row.status)[0]
        control = row.objective == CONTROL
        objective = f"{row.objective} (control)" if control else row.objective
        if row.trial is None and not several:
            objective = f"teacher {row.student}"
        table.add_row(
            str(row.rank or ""),
            "" if row.trial is None else str(row.trial),
            *([row.student] if several else []),
            objective,
            *([spread(row.test_accuracy, row.test_deviation)] if confirmed else []),
            percent(row.heldout_accuracy),
            points(row.gain),
            *([_count(row.parameters), _milliseconds(row.latency_ms)] if several else []),
            row.epochs,
            "" if row.seconds is None else f"{row.seconds:.1f}",
            row.status,
            style="bold" if control else styles.get(status, "dim"),
        )
    return table


WINNERS_CURSE = (
    "Winner's curse: the best of many trials is also the luckiest, so the accuracy that it was "
    "chosen by is too high; fresh seeds on test images, which chose nothing, say what is left."
)


def confirmed_table(record: SearchRecord) -> Table:
    """What fresh seeds gave: accuracies in percent, mean ± standard deviation over the seeds; gains
    over the same student's control in percentage points, with Student's 95 % interval."""
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
    for column in ("seeds", "searched %", "held-out %", "test %"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("gain", overflow="fold")
    searched = {
        trial.number: trial.heldout_accuracy for trial in record.trials if trial.state == "finished"
    }
    for each in by_test_accuracy(record.confirmed):
        seeds = len(each.test_accuracies)
        words = record.words(each)
        table.add_row(
            each.label,
            words if each.role == "best" else f"{words} ({each.role})",
            str(seeds) if seeds == len(each.runs) else f"{seeds} of {len(each.runs)}",
            percent(searched.get(each.trial)) if each.trial is not None else "",
            percent(each.heldout_accuracy) if seeds else "",
            spread(each.test_accuracy, each.test_deviation) if each.is_confirmed else "",
            gain_in_words(record.confirmed_gain(each)),
            style="bold" if each.role == "control" else "",
        )
    return table


def by_test_accuracy(confirmed: tuple[Confirmed, ...]) -> list[Confirmed]:
    """Best mean first; without a spread, last."""
    return sorted(
        confirmed, key=lambda each: -each.test_accuracy if each.is_confirmed else float("inf")
    )


def gain_in_words(gain: PairedGain | None) -> str:
    """A paired gain in percentage points, with its interval and what that says."""
    if gain is None:
        return ""
    verdict = "more than noise" if gain.is_more_than_noise else "within noise"
    return f"{points(gain.mean)} [{points(gain.low)}, {points(gain.high)}] {verdict}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _milliseconds(latency: float | None) -> str:
    return "" if latency is None else f"{latency:.3g}"


def _costs(record: SearchRecord) -> str | None:
    """What the one student costs, in words."""
    lines = [
        f"student {name}: {cost.parameters:,} parameters, {cost.multiply_adds:,} multiply-adds, "
        f"{_milliseconds(cost.latency_ms)} ms an image, {_milliseconds(cost.batch_latency_ms)} ms "
        f"a batch of {BATCH}"
        for name, cost in record.student_costs.items()
    ]
    return "\n".join(lines) or None


def as_markdown(record: SearchRecord, rows: Sequence[Row]) -> str:
    """Rows as a table for people; accuracies in percent, gains in percentage points."""
    several = len(record.experiment.students) > 1
    names = ["rank", "trial", *(["student"] if several else []), "objective"]
    confirmed = any(each.is_confirmed for each in record.confirmed)
    names += [*(["test %"] if confirmed else []), "held-out %", "gain", "epochs", "status"]
    lines = [names, ["---"] * len(names)]
    for row in rows:
        network = "teacher" if row.trial is None else row.objective
        if row.trial is None and not several:
            network = f"teacher {row.student}"
        cells = [str(row.rank or ""), "" if row.trial is None else str(row.trial)]
        cells += [row.student] if several else []
        cells += [f"{network} (control)" if network == CONTROL else network]
        cells += [spread(row.test_accuracy, row.test_deviation)] if confirmed else []
        cells += [percent(row.heldout_accuracy), points(row.gain), row.epochs, row.status]
        lines.append([cell.replace("|", "\\|") for cell in cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def as_bytes(record: SearchRecord, form: str, method: str = "", state: str = "") -> bytes:
    """The leaderboard as `json`, `csv` or `parquet`, with accuracies and gains as shares of 1, or
    as `markdown`, which is for people. Method and state leave rows out, as `leaderboard` does."""
    kept = leaderboard(record, method, state)
    if form == "markdown":
        return as_markdown(record, kept).encode()
    rows = [asdict(row) for row in kept]
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
            ("student", pa.string()),
            ("objective", pa.string()),
            ("heldout_accuracy", pa.float64()),
            ("test_accuracy", pa.float64()),
            ("test_deviation", pa.float64()),
            ("seeds", pa.int32()),
            ("gain", pa.float64()),
            ("parameters", pa.int64()),
            ("latency_ms", pa.float64()),
            ("epochs", pa.string()),
            ("seconds", pa.float64()),
            ("status", pa.string()),
        ]
    )
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()
