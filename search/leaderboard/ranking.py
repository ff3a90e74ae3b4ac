"""TODO-DOC"""

from dataclasses import dataclass

from kdcore.errors import did_you_mean
from search.record.record import Confirmed, SearchRecord, TrialRecord


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


def by_test_accuracy(confirmed: tuple[Confirmed, ...]) -> list[Confirmed]:
    """Best mean first; without a spread, last."""
    return sorted(
        confirmed, key=lambda each: -each.test_accuracy if each.is_confirmed else float("inf")
    )
