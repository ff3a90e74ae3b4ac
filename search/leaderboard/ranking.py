"""The leaderboard: trials ranked by accuracy, with the gain of each over its control."""

from dataclasses import dataclass

from kdcore.errors import did_you_mean
from kdcore.networks.cost import CostName
from search.errors import SearchError
from search.experiment.space.point import recipe_in_words
from search.leaderboard.front import front
from search.record.costs import cost_of
from search.record.record import Confirmed, SearchRecord, TrialRecord, place
from search.record.wording import METRIC_HEADS, spread


@dataclass(frozen=True)
class LeaderboardRow:
    """A row of the leaderboard: a trial, or a teacher.

    Args:
        rank: from 1, among the trials with an accuracy; None for a teacher.
        trial: the trial's number; None for a teacher.
        student: the student's label; in a teacher's row, the teacher's.
        teacher: the label of the teacher that it learned from; empty for a control.
        pretrained: whether it began with weights that it was given.
        objective: the methods with their searched settings; `none` is the control.
        recipe: what was chosen of recipe and views, like `learning_rate=0.03`; empty if nothing.
        heldout_accuracy: of the best epoch, from 0 to 1.
        heldout_balanced_accuracy: the same; None where it is not known.
        heldout_top5: the same; None with fewer than 20 classes.
        test_accuracy: mean over the fresh seeds of a confirmed student, from 0 to 1.
        test_deviation: standard deviation over those seeds.
        seeds: number of those seeds.
        gain: held-out accuracy, or what else `search.metric` is, minus that of the same student's
            control; in a teacher's row, minus that of the best control; None without a finished
            control.
        parameters: of the network; None if it was not measured.
        latency_ms: median milliseconds for one image, on the machine that runs the trials.
        epochs: trained and planned, like `6/12`.
        seconds: of training and evaluation.
        status: `finished`, `stopped`, `failed`, `interrupted` or `running`, followed by the number
            of parts that batches were split into and by the reason of a failure; `teacher` in a
            teacher's row.
    """

    rank: int | None
    trial: int | None
    student: str
    teacher: str
    pretrained: bool
    objective: str
    recipe: str
    heldout_accuracy: float | None
    heldout_balanced_accuracy: float | None
    heldout_top5: float | None
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
    """Trials from best to worst.

    Confirmed trials come first, by mean test accuracy; the others follow by held-out accuracy, then
    held-out loss, then number. Trials without an accuracy come last. Where `search.metric` is
    another one, it takes the place of the accuracy.
    """
    tested = {each.trial: each.test_score for each in confirmed if each.is_confirmed}
    return sorted(trials, key=lambda trial: (-tested.get(trial.number, -1.0), place(trial)))


def by_test_accuracy(confirmed: tuple[Confirmed, ...]) -> list[Confirmed]:
    """Confirmed trials, the best mean on the test split first, by what the search ranks by; those
    with one seed come last."""
    return sorted(
        confirmed, key=lambda each: -each.test_score if each.is_confirmed else float("inf")
    )


def leaderboard(
    record: SearchRecord, method: str = "", state: str = "", front_by: CostName | None = None
) -> list[LeaderboardRow]:
    """The rows of the leaderboard: the teachers, then the trials by rank.

    Args:
        record: the search.
        method: only trials with this method; `none` selects the controls.
        state: only trials in this state.
        front_by: of these only the front of accuracy against this cost.

    Raises:
        SearchError: the search has no such method.
    """
    methods = {name for slot in record.experiment.objective for name in slot}
    if method and method not in methods:
        hint = did_you_mean(method, sorted(methods))
        raise SearchError(
            f"{record.name} has no method {method!r}{hint} It has {', '.join(sorted(methods))}"
        )
    chosen = [
        trial
        for trial in record.trials
        if (not method or method in trial.methods.split(" + ")) and state in ("", trial.state)
    ]
    if front_by is not None:
        chosen = front(record, chosen, front_by)
    selected, whole = {trial.number for trial in chosen}, not (method or state or front_by)
    return [
        row for row in _all_rows(record) if row.trial in selected or (row.trial is None and whole)
    ]


def pretrained_students(record: SearchRecord) -> frozenset[str]:
    """The labels of the students that begin with weights; only where there are some do tables have
    a column for it."""
    students = record.experiment.student_configs.items()
    return frozenset(label for label, student in students if student.weights is not None)


def searches_teacher(record: SearchRecord) -> bool:
    """Whether there are several teachers; only then do tables have a column for it."""
    return len(record.experiment.teachers) > 1


def searches_recipe(record: SearchRecord) -> bool:
    """Whether recipe or views are searched; only then do tables have a column for it."""
    experiment = record.experiment
    return experiment.training.space is not None or experiment.searched_views is not None


def _all_rows(record: SearchRecord) -> list[LeaderboardRow]:
    rows = []
    controls = [record.control_of(student) for student in record.experiment.students]
    best = max((c.score or 0.0 for c in controls if c is not None), default=None)
    for label, teacher in record.ready_teachers.items():
        metrics, score = teacher.metrics, record.teacher_scores.get(label)
        if not metrics:
            continue
        rows.append(
            LeaderboardRow(
                rank=None,
                trial=None,
                student=label,
                teacher=label,
                pretrained=any(each.weights for each in record.experiment.members(label).values()),
                objective="teacher",
                recipe="",
                heldout_accuracy=metrics["heldout_accuracy"],
                heldout_balanced_accuracy=metrics.get("heldout_balanced_accuracy"),
                heldout_top5=metrics.get("heldout_top5"),
                test_accuracy=None,
                test_deviation=None,
                seeds=None,
                gain=None if best is None or score is None else score - best,
                parameters=None,
                latency_ms=None,
                epochs="",
                seconds=None,
                status="teacher",
            )
        )
    confirmed = confirmed_trials(record)
    pretrained = pretrained_students(record)
    for position, trial in enumerate(rank(record.trials, record.confirmed), start=1):
        again = confirmed.get(trial.number)
        cost = cost_of(record, trial)
        rows.append(
            LeaderboardRow(
                rank=position if trial.heldout_accuracy is not None else None,
                trial=trial.number,
                student=trial.student,
                teacher=record.teacher_of(trial),
                pretrained=trial.student in pretrained,
                objective=trial.objective,
                recipe=recipe_in_words(trial.point),
                heldout_accuracy=trial.heldout_accuracy,
                heldout_balanced_accuracy=trial.heldout_balanced_accuracy,
                heldout_top5=trial.heldout_top5,
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


def further_columns(record: SearchRecord) -> dict[str, str]:
    """By field of a row, the heads of columns beside the accuracy: of what is ranked by, and of
    balanced accuracy where classes are unequal."""
    shown = {record.experiment.search.metric}
    if record.unequal_classes:
        shown.add("balanced_accuracy")
    return {f"heldout_{name}": head for name, head in METRIC_HEADS.items() if name in shown}


def tested_heads(record: SearchRecord) -> list[str]:
    """The heads of a confirmed student's columns: of what is ranked by, and of the accuracy."""
    head = METRIC_HEADS.get(record.metric)
    return ["test %"] if head is None else [f"test {head}", "test %"]


def tested_cells(record: SearchRecord, confirmed: Confirmed | None) -> list[str]:
    """What stands below `tested_heads`, mean ± standard deviation in percent; empty where a student
    is not confirmed."""
    if confirmed is None or not confirmed.is_confirmed:
        return [""] * len(tested_heads(record))
    accuracy = spread(confirmed.test_accuracy, confirmed.test_deviation)
    if record.metric == "accuracy":
        return [accuracy]
    return [spread(confirmed.test_score, confirmed.test_score_deviation), accuracy]


def confirmed_trials(record: SearchRecord) -> dict[int | None, Confirmed]:
    """By their numbers, the trials that were confirmed."""
    return {e.trial: e for e in record.confirmed if e.is_confirmed and e.trial is not None}
