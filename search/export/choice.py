"""Which of a search's students is the best within its user's limits."""

from dataclasses import dataclass

from kdcore.networks.cost import NetworkCost
from search.experiment.schema import Option
from search.leaderboard.ranking import by_test_accuracy, rank
from search.record.record import Confirmed, SearchRecord
from search.record.wording import percent


@dataclass(frozen=True)
class Limits:
    """What a student may cost, and how good it must be; none: no limit.

    Args:
        parameters: at most so many.
        latency_ms: at most so many milliseconds for one image, where the trials ran.
        accuracy: at least this share of 1: of a confirmed student, the mean on the test split; else
            held out.
    """

    parameters: int | None = None
    latency_ms: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.latency_ms is not None and self.latency_ms <= 0:
            raise ValueError(f"--max-latency-ms is {self.latency_ms:g}, but must be > 0")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError(
                f"--min-accuracy is {self.accuracy:g}, but must be a share of 1, like 0.95"
            )


@dataclass(frozen=True)
class Picked:
    """A student whose weights are there, with what was recorded of them.

    Args:
        label: of its row: the trial's number, or the published setting's name.
        trial: the trial's number, where it is one.
        student: the network.
        objective: the methods with their searched settings, in words.
        point: its settings.
        seed: that these weights were trained with.
        heldout_accuracy: of these weights, a share of 1.
        best_epoch: the epoch that they are of.
        test_accuracy: of these weights, where it was recorded.
        checkpoint: their folder, relative to the storage.
        confirmed: all its seeds, where there are several.
    """

    label: str
    trial: int | None
    student: str
    objective: str
    point: dict[str, Option]
    seed: int
    heldout_accuracy: float
    best_epoch: int
    test_accuracy: float | None
    checkpoint: str
    confirmed: Confirmed | None = None

    @property
    def accuracy(self) -> float:
        """That it is picked by."""
        return self.heldout_accuracy if self.confirmed is None else self.confirmed.test_accuracy


def candidates(record: SearchRecord) -> list[Picked]:
    """The students that may be picked, best first: the confirmed ones, with the weights of the seed
    that is best on held-out images; then the other finished trials."""
    confirmed = [each for each in by_test_accuracy(record.confirmed) if each.is_confirmed]
    known = {each.trial for each in confirmed}
    return [_of_seeds(each) for each in confirmed] + [
        Picked(
            label=str(trial.number),
            trial=trial.number,
            student=trial.student,
            objective=trial.objective,
            point=trial.point,
            seed=record.experiment.seed,
            heldout_accuracy=trial.heldout_accuracy,
            best_epoch=trial.best_epoch,
            test_accuracy=None,
            checkpoint=trial.checkpoint,
        )
        for trial in rank(record.trials)
        if trial.state == "finished"
        and trial.number not in known
        and trial.heldout_accuracy is not None
        and trial.best_epoch is not None
        and trial.checkpoint is not None
    ]


def _of_seeds(confirmed: Confirmed) -> Picked:
    # Not by the test split: its best seed would be the luckiest there.
    run = max(
        (run for run in confirmed.runs if run.test_accuracy is not None),
        key=lambda run: (run.heldout_accuracy or 0.0, -(run.heldout_loss or 0.0)),
    )
    assert run.heldout_accuracy is not None
    assert run.best_epoch is not None
    assert run.checkpoint is not None
    return Picked(
        label=confirmed.label,
        trial=confirmed.trial,
        student=confirmed.student,
        objective=confirmed.objective,
        point=confirmed.point,
        seed=run.seed,
        heldout_accuracy=run.heldout_accuracy,
        best_epoch=run.best_epoch,
        test_accuracy=run.test_accuracy,
        checkpoint=run.checkpoint,
        confirmed=confirmed,
    )


def pick(record: SearchRecord, limits: Limits) -> Picked:
    """The best student within the limits.

    Raises:
        ValueError: no trial has finished, or every student is outside; the message says what
            excluded the nearest.
    """
    ranked = candidates(record)
    if not ranked:
        raise ValueError(
            f"no trial of {record.name} has finished, so there is no student to export"
        )
    outside = []
    for candidate in ranked:
        excesses = _excesses(candidate, record.student_costs.get(candidate.student), limits)
        if not excesses:
            return candidate
        outside.append((max(excesses)[0], candidate, [reason for _, reason in excesses]))
    _, nearest, reasons = min(outside, key=lambda each: each[0])
    trial = f"trial {nearest.label}" if nearest.trial is not None else nearest.label
    raise ValueError(
        f"no student of {record.name} is within the limits; the nearest is {trial}, "
        f"{nearest.student}, which {' and '.join(reasons)}"
    )


def _excesses(
    candidate: Picked, cost: NetworkCost | None, limits: Limits
) -> list[tuple[float, str]]:
    """Where a student is outside: by which share of the limit, and in words."""
    found = []
    if limits.parameters is not None or limits.latency_ms is not None:
        if cost is None:
            return [(float("inf"), "was not measured")]
        if limits.parameters is not None and cost.parameters > limits.parameters:
            words = f"has {cost.parameters:,} parameters, but --max-params is {limits.parameters:,}"
            found.append((cost.parameters / limits.parameters - 1, words))
        if limits.latency_ms is not None and cost.latency_ms > limits.latency_ms:
            words = (
                f"takes {cost.latency_ms:.3g} ms an image, but --max-latency-ms is "
                f"{limits.latency_ms:.3g}"
            )
            found.append((cost.latency_ms / limits.latency_ms - 1, words))
    if limits.accuracy is not None and candidate.accuracy < limits.accuracy:
        kind = "held-out" if candidate.confirmed is None else "mean test"
        words = (
            f"has a {kind} accuracy of {percent(candidate.accuracy)} %, but --min-accuracy is "
            f"{percent(limits.accuracy)} %"
        )
        found.append((1 - candidate.accuracy / limits.accuracy, words))
    return found
