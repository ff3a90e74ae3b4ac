"""A row of the leaderboard trained again, and compared with its record epoch by epoch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kdcore import EpochReport, NonFiniteLossError, TrialConfig
from kdcore.distillation.together import distill_together
from kdcore.errors import did_you_mean
from kdcore.training.evaluation import default_device
from search.errors import SearchError
from search.experiment.running import use_plugins
from search.experiment.space.trial_config import trial_config
from search.record.networks import Executions
from search.record.record import SearchRecord
from search.record.storage import Storage, workspace_of
from search.record.trial_checkpoints import recorded_reports

# What decides whether two trainings are the same; times and caches may differ.
_COMPARED = ("train_loss", "train_accuracy", "heldout_accuracy", "heldout_loss")


@dataclass(frozen=True)
class RecordedTraining:
    """What a record says of one training.

    Args:
        words: the settings, in words.
        config: everything that decides its numbers.
        reports: of each epoch, what is known; at least the held-out accuracy.
        executions: of its search; none: this machine's own.
        uses_gpu: whether it had a share of a GPU.
        workers: number of processes that trained it.
    """

    words: str
    config: TrialConfig
    reports: tuple[dict[str, Any], ...]
    executions: Executions | None = None
    uses_gpu: bool = False
    workers: int = 1


def recorded_training(
    record: SearchRecord, storage: Storage, label: str, seed: int | None = None
) -> RecordedTraining:
    """Finds a row.

    Args:
        record: the search.
        storage: where its checkpoints lie.
        label: a trial's number, or the label of a confirmed student.
        seed: of a run of the confirmation; none: the trial as the search ran it.

    Raises:
        SearchError: there is no such row or seed, or none of its epochs was recorded.
    """
    use_plugins(record.experiment)
    confirmed = {each.label: each for each in record.confirmed}
    trials = {str(trial.number): trial for trial in record.trials}
    known = [*trials, *(other for other in confirmed if other not in trials)]
    if label not in known:
        raise SearchError(
            f"no trial {label!r} in {record.name}{did_you_mean(label, known)} "
            f"There are {', '.join(known)}"
        )
    if seed is None and label in trials:
        found = trials[label]
        words, point, accuracies = record.words(found), found.point, found.accuracies
        checkpoint, config = found.checkpoint, trial_config(record.experiment, point)
    else:
        runs = {run.seed: run for run in confirmed[label].runs} if label in confirmed else {}
        if seed is None or seed not in runs:
            there = ", ".join(map(str, runs)) or "none: kdsearch confirm trains some"
            raise SearchError(f"--seed is {seed}, but {label} was confirmed with {there}")
        again, run = confirmed[label], runs[seed]
        words, point, accuracies = record.words(again), again.point, run.accuracies
        config = trial_config(record.experiment, point).model_copy(update={"seed": seed})
        checkpoint = run.checkpoint
    if not accuracies:
        raise SearchError(f"no epoch of trial {label} is in the record, so nothing can be compared")
    reported = recorded_reports(storage, checkpoint) if checkpoint is not None else []
    reports = [
        {**(reported[epoch] if epoch < len(reported) else {}), "heldout_accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies)
    ]
    resources = record.experiment.resources
    return RecordedTraining(
        words, config, tuple(reports), record.executions, resources.gpus > 0, resources.workers
    )


def rerun(
    row: RecordedTraining,
    storage: Storage,
    *,
    threads: int,
    checkpoint: Path | None = None,
    heard: Callable[[EpochReport], None] = lambda report: None,
) -> str:
    """Trains a row again on this machine.

    Args:
        row: what to train, and what it gave.
        storage: where the teacher lies.
        threads: of the CPU, as each worker of the trial had.
        checkpoint: an empty folder for the training's checkpoint; none: none is kept.
        heard: gets each epoch's report.

    Returns:
        The first difference, in words; empty where all epochs are equal.
    """
    torch.set_num_threads(threads)
    workspace = workspace_of(storage)
    if storage.local is None:
        from search.session.preparation import fetch_teacher

        fetch_teacher(row.config.data_of_teacher, row.config.teacher, storage, workspace)
    # As in its last epoch. Where memory first failed later than in the first, that one differs.
    parts = row.reports[-1].get("parts", 1)
    executions = row.executions
    reports = distill_together(
        row.config,
        row.workers,
        workspace=workspace,
        checkpoint_dir=checkpoint,
        device=default_device() if row.uses_gpu else torch.device("cpu"),
        parts=parts,
        execution=executions.students[row.config.student.label] if executions else None,
        teacher_execution=(
            executions.of_teacher(row.config.teacher.network) if executions else None
        ),
    )
    try:
        for then, report in zip(row.reports, islice(reports, len(row.reports)), strict=True):
            heard(report)
            now = asdict(report)
            for name in _COMPARED:
                if name in then and then[name] != now[name]:
                    return (
                        f"epoch {report.epoch}: {name} was {then[name]!r}, is {now[name]!r}, "
                        f"differs by {now[name] - then[name]:+.3g}"
                    )
    except NonFiniteLossError as error:
        return f"it failed, but did not then: {error}"
    return ""
