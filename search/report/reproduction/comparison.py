"""What a reproduction gave beside what was published, and whether that differs beyond noise."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from search.experiment.figures import Figure, PairFigures
from search.record.record import ConfirmationRun, Confirmed, SearchRecord

TEACHER = "teacher"
Verdict = Literal["within noise", "outside noise", "unknown", "other protocol", ""]


@dataclass(frozen=True)
class Accuracy:
    """Of a kind of epoch, over the seeds; shares of 1.

    Args:
        mean: over the seeds.
        deviation: sample standard deviation; none with one seed.
    """

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, accuracies: Sequence[float]) -> "Accuracy | None":
        """Of one run each; none without runs."""
        if not accuracies:
            return None
        several = len(accuracies) > 1
        return cls(statistics.fmean(accuracies), statistics.stdev(accuracies) if several else None)


@dataclass(frozen=True)
class Line:
    """A row of a pair, beside one figure that was published of it; shares of 1.

    Args:
        pair: its name.
        row: its name; `none` is the control, `teacher` the teacher.
        objective: the methods with their settings; of the teacher, its network.
        last: test accuracy of the last epoch.
        best: of the epoch that is best on the test split; of the teacher not known.
        runs: those that did not fail, by seed; none for the teacher.
        figure: what was published; none if nothing was.
        difference: ours, of the same kind of epoch (the last where that is not known), minus the
            figure.
        half_width: half of its 95 % interval; none with fewer than two seeds.
        verdict: whether the difference is more than noise; empty without a figure.
        gain: accuracy minus the control's, of the figure's kind of epoch, or of the last.
        published_gain: likewise of the figure.
        seconds: of a run, on average.
        images_per_second: of training with its evaluations; none where it is not known.
    """

    pair: str
    row: str
    objective: str
    last: Accuracy | None
    best: Accuracy | None
    runs: tuple[ConfirmationRun, ...] = ()
    figure: Figure | None = None
    difference: float | None = None
    half_width: float | None = None
    verdict: Verdict = ""
    gain: float | None = None
    published_gain: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class Block:
    """A pair: its teacher, its control and its rows.

    Args:
        pair: its name.
        title: of its table.
        lines: the teacher's, the control's, then those of the rows; a row with several published
            figures has a line for each.
        changes: what differs from the pair's file, so that the figures are of another protocol.
        failures: the runs that failed, with the reason.
        device_minutes: that the runs took, without the teacher.
        device: `GPU` or `core`.
    """

    pair: str
    title: str
    lines: tuple[Line, ...]
    changes: tuple[str, ...]
    failures: tuple[str, ...]
    device_minutes: float
    device: str


def block(record: SearchRecord, figures: PairFigures | None, changes: Iterable[str] = ()) -> Block:
    """Compares a pair with what was published of it.

    Args:
        record: of its reproduction; its rows are the confirmed students.
        figures: that were published of the pair; none if there are none.
        changes: what differs from the pair's file, in words.
    """
    changes = tuple(changes)
    experiment = record.experiment
    of_teacher = figures.teacher if figures is not None else ()
    lines = [_teacher_line(record, figure, changes) for figure in of_teacher or (None,)]
    control = next((each for each in record.confirmed if each.role == "control"), None)
    for row in record.confirmed:
        published: Sequence[Figure] = ()
        if figures is not None:
            published = figures.student if row is control else figures.rows.get(row.label, ())
        lines += [
            _line(record, row, control, figure, figures, changes) for figure in published or (None,)
        ]
    devices = experiment.resources.devices
    runs = [(row, run) for row in record.confirmed for run in row.runs]
    return Block(
        pair=record.reproduces,
        title=(
            f"{record.reproduces}: {experiment.teachers[0]} teaches {experiment.students[0]} "
            f"on {experiment.data.name}, {experiment.training.epochs} epochs"
        ),
        lines=tuple(lines),
        changes=changes,
        failures=tuple(
            f"{row.label} with seed {run.seed} failed: {run.reason}"
            for row, run in runs
            if run.reason
        ),
        device_minutes=sum(run.train_seconds for _, run in runs) * devices / 60,
        device="GPU" if experiment.resources.gpus else "core",
    )


def _teacher_line(record: SearchRecord, figure: Figure | None, changes: tuple[str, ...]) -> Line:
    """The teacher has one run, and the weights of its last epoch teach."""
    accuracy = record.teacher_metrics.get("heldout_accuracy")
    return Line(
        pair=record.reproduces,
        row=TEACHER,
        objective=record.experiment.teachers[0],
        last=None if accuracy is None else Accuracy(accuracy),
        best=None,
        figure=figure,
        difference=None if figure is None or accuracy is None else accuracy - figure.accuracy,
        verdict=_verdict(figure, accuracy, None, changes),
    )


def _line(
    record: SearchRecord,
    row: Confirmed,
    control: Confirmed | None,
    figure: Figure | None,
    figures: PairFigures | None,
    changes: tuple[str, ...],
) -> Line:
    runs = tuple(run for run in row.runs if not run.reason)
    kind = "last" if figure is None or figure.epoch is None else figure.epoch
    ours = Accuracy.of(_accuracies(runs, kind))
    difference = half_width = gain = published_gain = None
    if figure is not None and ours is not None:
        difference = ours.mean - figure.accuracy
        half_width = interval(_accuracies(runs, kind), figure.spread, figure.seeds)
    if control is not None and row is not control:
        alone = Accuracy.of(_accuracies([run for run in control.runs if not run.reason], kind))
        if ours is not None and alone is not None:
            gain = ours.mean - alone.mean
        if figure is not None and figures is not None and figures.student:
            published_gain = figure.accuracy - _baseline(figures, figure).accuracy
    seconds = sum(run.train_seconds for run in runs)
    images = sum(run.images for run in runs)
    return Line(
        pair=record.reproduces,
        row=row.label,
        objective=row.objective,
        last=Accuracy.of(_accuracies(runs, "last")),
        best=Accuracy.of(_accuracies(runs, "best")),
        runs=runs,
        figure=figure,
        difference=difference,
        half_width=half_width,
        verdict=_verdict(figure, difference, half_width, changes),
        gain=gain,
        published_gain=published_gain,
        seconds=seconds / len(runs) if runs else None,
        images_per_second=images / seconds if images and seconds else None,
    )


def _baseline(figures: PairFigures, figure: Figure) -> Figure:
    """The student alone, of the same source where that has it."""
    same = [each for each in figures.student if each.source == figure.source]
    return (same or list(figures.student))[0]


def _accuracies(runs: Iterable[ConfirmationRun], kind: str) -> list[float]:
    """Of each run, the test accuracy of its last or its best epoch."""
    if kind == "last":
        return [run.accuracies[-1] for run in runs]
    return [run.test_accuracy for run in runs if run.test_accuracy is not None]


def _verdict(
    figure: Figure | None,
    difference: float | None,
    half_width: float | None,
    changes: tuple[str, ...],
) -> Verdict:
    if figure is None:
        return ""
    if changes:
        return "other protocol"
    if difference is None or half_width is None or figure.epoch is None:
        return "unknown"
    return "within noise" if abs(difference) <= half_width else "outside noise"


def interval(ours: Sequence[float], spread: float | None, seeds: int | None) -> float | None:
    """Half the 95 % interval of the difference between our mean and a published one, by Welch's t
    (Welch 1947).

    A published figure without a spread is taken to have ours, and one without a number of seeds to
    be of one run.

    Args:
        ours: an accuracy for each seed.
        spread: standard deviation of the published runs.
        seeds: their number.

    Returns:
        It; none with fewer than two seeds.
    """
    count, theirs = len(ours), seeds or 1
    if count < 2:
        return None
    from scipy.special import stdtrit

    variance = statistics.variance(ours)
    of_theirs = variance if spread is None else spread**2
    parts = variance / count, of_theirs / theirs
    freedom = float(count - 1)
    if spread is not None and theirs > 1 and sum(parts) > 0:
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (count - 1) + parts[1] ** 2 / (theirs - 1))
    return float(stdtrit(freedom, 0.975)) * math.sqrt(sum(parts))
