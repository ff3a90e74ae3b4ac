"""Picks a search's best student within limits of size, latency and accuracy."""

from dataclasses import dataclass

from kdcore.networks.cost import NetworkCost
from search.errors import SearchError
from search.experiment.schema import CONTROL
from search.experiment.searched import Option
from search.leaderboard.ranking import by_test_accuracy, rank
from search.record.costs import cost_of
from search.record.record import Confirmed, SearchRecord
from search.record.wording import excess_in_words, percent


@dataclass(frozen=True)
class Limits:
    """What a student may cost, and how accurate it must be; None sets no limit.

    Args:
        parameters: the largest number of parameters.
        latency_ms: the largest latency for one image in milliseconds, where the trials ran.
        accuracy: the smallest accuracy, from 0 to 1: a confirmed student's mean test accuracy, any
            other student's held-out accuracy; by whatever metric students are ranked.

    Raises:
        SearchError: a limit is out of range.
    """

    parameters: int | None = None
    latency_ms: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.latency_ms is not None and self.latency_ms <= 0:
            raise SearchError(f"--max-latency-ms is {self.latency_ms:g}, but must be > 0")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise SearchError(
                f"--min-accuracy is {self.accuracy:g}, but must be from 0 to 1, like 0.95"
            )


@dataclass(frozen=True)
class Candidate:
    """A trained student that can be exported.

    Args:
        label: the trial's number, or the published setting's name.
        trial: the trial's number; None for a published setting that the search did not try.
        student: the student network.
        objective: the methods with their searched settings.
        point: the settings that the search chose.
        seed: the seed that the weights were trained with.
        heldout_accuracy: of the weights, from 0 to 1.
        best_epoch: the epoch of the weights.
        test_accuracy: of the weights, from 0 to 1; None if it was not recorded.
        checkpoint: the folder of the weights, relative to the storage.
        confirmed: the results of all seeds, if it was confirmed.
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
    def is_control(self) -> bool:
        return self.objective == CONTROL

    @property
    def accuracy(self) -> float:
        """The accuracy that limits apply to: of a confirmed student, its mean test accuracy."""
        return self.heldout_accuracy if self.confirmed is None else self.confirmed.test_accuracy


def candidates(record: SearchRecord) -> list[Candidate]:
    """The students that can be exported, best first.

    Confirmed students come first, each with the weights of the seed that is best on the held-out
    images; the other finished trials follow.
    """
    confirmed = [each for each in by_test_accuracy(record.confirmed) if each.is_confirmed]
    numbers = {each.trial for each in confirmed}
    return [_best_seed(each) for each in confirmed] + [
        Candidate(
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
        and trial.number not in numbers
        and trial.heldout_accuracy is not None
        and trial.best_epoch is not None
        and trial.checkpoint is not None
    ]


def _best_seed(confirmed: Confirmed) -> Candidate:
    # Choosing by the test split would make its accuracy too high.
    run = max(
        (run for run in confirmed.runs if run.test_accuracy is not None),
        key=lambda run: (run.heldout_by_metric or 0.0, -(run.heldout_loss or 0.0)),
    )
    assert run.heldout_accuracy is not None
    assert run.best_epoch is not None
    assert run.checkpoint is not None
    return Candidate(
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


def pick(record: SearchRecord, limits: Limits) -> Candidate:
    """The best student within the limits.

    Raises:
        SearchError: no trial has finished, or no student is within the limits; the message says
            what excludes the nearest one.
    """
    ranked = candidates(record)
    if not ranked:
        raise SearchError(f"no trial of {record.name} has finished, so there is nothing to export")
    outside = []
    for candidate in ranked:
        excesses = _excesses(candidate, cost_of(record, candidate), limits)
        if not excesses:
            return candidate
        outside.append((max(excesses)[0], candidate, [reason for _, reason in excesses]))
    _, nearest, reasons = min(outside, key=lambda each: each[0])
    trial = f"trial {nearest.label}" if nearest.trial is not None else nearest.label
    raise SearchError(
        f"no student of {record.name} is within the limits; the nearest is {trial}, "
        f"{nearest.student}, which {' and '.join(reasons)}"
    )


def _excesses(
    candidate: Candidate, cost: NetworkCost | None, limits: Limits
) -> list[tuple[float, str]]:
    """The limits that a student exceeds: by which share of the limit, and in words."""
    found = []
    if limits.parameters is not None or limits.latency_ms is not None:
        if cost is None:
            return [(float("inf"), "was not measured")]
        if limits.parameters is not None and cost.parameters > limits.parameters:
            words = excess_in_words(
                "parameters", cost.parameters, "--max-params", limits.parameters
            )
            found.append((cost.parameters / limits.parameters - 1, words))
        if limits.latency_ms is not None and cost.latency_ms > limits.latency_ms:
            words = excess_in_words(
                "latency_ms", cost.latency_ms, "--max-latency-ms", limits.latency_ms
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
