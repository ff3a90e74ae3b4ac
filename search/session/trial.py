"""A trial as Ray runs it: a sampled point becomes a distillation, its reports go to Tune."""

import errno
import gc
import math
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from kdcore import TrialConfig, distill
from kdcore.contract.plugin_faults import telling_of_hangs
from kdcore.execution.workers import Workers
from kdcore.networks.measurement import device_memory
from kdcore.teacher_cache.patience import PATIENCE_SECONDS, RETRY_SECONDS, patiently
from kdcore.training.evaluation import default_device
from kdcore.training.report import EpochReport
from search.experiment.running import use_plugins
from search.experiment.schema import Experiment, Resources
from search.experiment.space.point import NUMBER, Point
from search.experiment.space.trial_config import trial_config
from search.record.networks import Executions
from search.record.owner import check_owner
from search.record.record import METRIC, REASON, REPORT, SAVED, TIME
from search.record.storage import Storage, search_storage, workspace_of
from search.record.trial_checkpoints import Checkpoints, trial_folder
from search.session.faults import lasting_fault
from search.session.preparation import fetch_teacher
from search.session.scratch import scratch_folder
from search.session.worker_group import worker_group

# Less work than this is done again faster than it is copied to the storage and listed by Tune; and
# copies take no more than this share of a trial's time, however slow the storage is.
_CHECKPOINT_SECONDS = 5.0
_CHECKPOINT_SHARE = 0.05
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Work:
    """What each process of a trial does.

    Args:
        config: of the trial.
        storage_uri: where the teacher lies.
        parts: of each batch.
        executions: of the search; none: measured.
        cache_on_device: whether cached outputs may go to a GPU as a whole.
    """

    config: TrialConfig
    storage_uri: str
    parts: int
    executions: Executions | None
    cache_on_device: bool = True

    @property
    def has_cache_on_gpu(self) -> bool:
        """Whether cached outputs may take memory of a GPU, and so can be moved out of it."""
        reads = self.config.cache is not None and bool(self.config.objective)
        return self.cache_on_device and reads and device_memory(default_device()) is not None

    def arguments(self) -> dict[str, Any]:
        """Those of `kdcore.distill`, beside the configuration."""
        student = teacher = None
        if self.executions is not None:
            student = self.executions.students[self.config.student.label]
            teacher = self.executions.of_teacher(self.config.teacher.network)
        return {
            "workspace": workspace_of(Storage(self.storage_uri)),
            "parts": self.parts,
            "execution": student,
            "teacher_execution": teacher,
            "cache_on_device": self.cache_on_device,
        }


def run_trial(
    point: Point,
    *,
    experiment_json: str,
    storage_uri: str,
    search: str,
    executions: Executions | None = None,
    session: int | None = None,
) -> None:
    """Trains one student and reports each epoch, with a checkpoint every few seconds.

    A trial that was cut off continues from its newest intact checkpoint, and reports the epochs
    before it again, since nobody knows which of them were received.

    Args:
        point: what the search chose, with the trial's number.
        experiment_json: the experiment.
        storage_uri: where the teacher lies and the checkpoints go.
        search: its name.
        executions: of the search; none: each machine's own.
        session: the number of its owner, without which nothing is written; none: nobody owns it.
    """
    experiment = Experiment.model_validate_json(experiment_json)
    torch.set_num_threads(experiment.resources.cpus)
    storage = Storage(storage_uri)

    def check() -> None:
        if session is not None:
            check_owner(search_storage(storage, search), search, session)

    checkpoints = Checkpoints(storage, trial_folder(search, point[NUMBER]), check)
    told = saved = 0

    def give_up(reason: str) -> None:
        """It would be the same again, so it is no failure to Tune, which would try."""
        tune.report({REASON: reason, METRIC: math.nan, TIME: told, SAVED: saved})

    with scratch_folder() as folder, telling_of_hangs(give_up, experiment.plugins):
        try:
            use_plugins(experiment)  # which may hang, too
            config = trial_config(experiment, point)
            stream = resumable_reports(
                config, storage, checkpoints, folder, executions, experiment.resources
            )
            with closing(stream):
                for report, saved in stream:
                    tune.report(as_result(report, saved))
                    told += 1
        except (Exception, SystemExit) as error:
            if not (reason := lasting_fault(error)):
                raise
            give_up(reason)
        finally:
            release_gpu_memory()


def as_result(report: Mapping[str, Any], saved: int) -> dict[str, Any]:
    """What Tune is told of an epoch. Of each number in it Tune keeps two kilobytes of statistics,
    so the report stays one thing.

    Args:
        report: of the epoch, as `EpochReport`'s fields.
        saved: the epoch of the newest checkpoint on the storage.
    """
    # A checkpoint of an earlier version has reports without the later fields.
    known = EpochReport.__annotations__.keys() & report.keys()
    whole = EpochReport(**{name: report[name] for name in known})
    score = report[METRIC] if whole.best_score is None else whole.best_score
    return {METRIC: score, TIME: report[TIME], SAVED: saved, REPORT: whole}


def resumable_reports(
    config: TrialConfig,
    storage: Storage,
    checkpoints: Checkpoints,
    folder: Path,
    executions: Executions | None,
    resources: Resources = Resources(),  # noqa: B008  (frozen)
) -> Generator[tuple[dict[str, Any], int]]:
    """Distils one student with a checkpoint on the storage every few seconds.

    Args:
        config: what to do.
        storage: where the teacher lies.
        checkpoints: those of this student; the newest whole one is continued.
        folder: an empty one on this machine; in the end it holds the last checkpoint.
        executions: of the search; none: this machine's own.
        resources: of the trial; its other workers are started in its placement group.

    Yields:
        Each epoch's report with the epoch of the newest checkpoint; those before the checkpoint
        that is continued come once more.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
    """
    workspace = workspace_of(storage)
    if storage.local is None:
        fetch_teacher(config.data_of_teacher, config.teacher, storage, workspace)
    reports = patiently(lambda: checkpoints.restore(folder))
    saved, due = len(reports), time.monotonic() + _CHECKPOINT_SECONDS
    for report in reports[:]:
        yield report, saved
    parts = reports[-1]["parts"] if reports else 1
    work = Work(config, storage.uri, parts, executions)
    for epoch in _epochs(work, folder, resources):
        reports.append(asdict(epoch))
        if epoch.epoch == epoch.epochs:
            patiently(lambda: checkpoints.save(folder, reports))
            saved = epoch.epoch
        elif (started := time.monotonic()) > due:
            try:
                checkpoints.save(folder, reports)
                saved = epoch.epoch
            except OSError as error:  # the next epoch's may succeed; nothing is lost yet
                print(f"no checkpoint of epoch {epoch.epoch}: {error}", file=sys.stderr)
            now = time.monotonic()
            due = now + max(_CHECKPOINT_SECONDS, (now - started) / _CHECKPOINT_SHARE)
        yield reports[-1], saved


def _epochs(work: Work, folder: Path, resources: Resources) -> Iterator[EpochReport]:
    """The trial's epochs. Out of GPU memory, it continues from the last epoch, first with the
    teacher's cached outputs in the machine's memory, then with each batch in two parts; with a full
    disk, as soon as there is space."""
    deadline = math.inf
    while True:
        try:
            with worker_group(resources, _help_along, work) as workers:
                for report in distill(
                    work.config, checkpoint_dir=folder, workers=workers, **work.arguments()
                ):
                    deadline = math.inf
                    yield report
            return
        except torch.OutOfMemoryError as error:
            if work.has_cache_on_gpu:
                work = replace(work, cache_on_device=False)
                print(f"cached outputs come by batches from here on: {error}", file=sys.stderr)
            elif work.parts == 1:
                work = replace(work, parts=2)
                print(f"each batch in two parts from here on: {error}", file=sys.stderr)
            else:
                raise
        except OSError as error:
            deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
            if error.errno not in _FULL or time.monotonic() > deadline:
                raise
            print(f"waiting for space: {error}", file=sys.stderr)
            time.sleep(RETRY_SECONDS)
        release_gpu_memory()


def _help_along(workers: Workers, work: Work) -> None:
    """What the other processes of a trial do."""
    storage, config = Storage(work.storage_uri), work.config
    if storage.local is None:
        fetch_teacher(config.data_of_teacher, config.teacher, storage, workspace_of(storage))
    for _ in distill(config, workers=workers, **work.arguments()):
        pass


def release_gpu_memory() -> None:
    """Gives a trial's GPU memory back, for the trials that share the GPU with this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
