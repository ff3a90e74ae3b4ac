"""A trial as Ray runs it: a sampled point becomes a distillation, its reports go to Tune."""

import errno
import gc
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import tune

from kdcore import DataConfig, TeacherConfig, TrialConfig, distill
from kdcore.data.image_data import open_data
from kdcore.errors import NonFiniteLossError
from kdcore.execution.execution import fastest_execution
from kdcore.networks.classifier import build_classifier
from kdcore.networks.cost import NetworkCost
from kdcore.networks.measurement import measure_network
from kdcore.teacher.teacher import is_ready, prepare_teacher, teacher_folder
from kdcore.training.evaluation import default_device
from kdcore.training.report import EpochReport
from search.experiment.schema import Experiment
from search.experiment.space.point import NUMBER, Point
from search.experiment.space.trial_config import trial_config
from search.record.record import METRIC, REASON, SAVED, TIME
from search.record.storage import PATIENCE_SECONDS, RETRY_SECONDS, Storage, patiently, workspace_of
from search.record.trial_checkpoints import Checkpoints, trial_folder

# Less work than this is done again faster than it is copied to the storage and listed by Tune; and
# copies take no more than this share of a trial's time, however slow the storage is.
_CHECKPOINT_SECONDS = 5.0
_CHECKPOINT_SHARE = 0.05
_FULL = (errno.ENOSPC, errno.EDQUOT)


def run_trial(point: Point, *, experiment_json: str, storage_uri: str, search: str) -> None:
    """Trains one student and reports each epoch, with a checkpoint every few seconds.

    A trial that was cut off, by whatever, goes on from its newest checkpoint that is whole. It
    reports the epochs until then once more, since nobody knows which of them were heard.

    Args:
        point: what the search chose, with the trial's number.
        experiment_json: the experiment.
        storage_uri: where the teacher lies and the checkpoints go.
        search: its name.
    """
    experiment = Experiment.model_validate_json(experiment_json)
    torch.set_num_threads(experiment.resources.cpus)
    config = trial_config(experiment, point)
    storage = Storage(storage_uri)
    checkpoints = Checkpoints(storage, trial_folder(search, point[NUMBER]))
    told = saved = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            for report, saved in resumable_reports(config, storage, checkpoints, Path(folder)):
                tune.report(report | {SAVED: saved})
                told += 1
        except NonFiniteLossError as error:
            # It would be the same again, so it is no failure to Tune, which would try.
            tune.report({REASON: str(error), METRIC: math.nan, TIME: told, SAVED: saved})
        finally:
            release_gpu_memory()


def resumable_reports(
    config: TrialConfig, storage: Storage, checkpoints: Checkpoints, folder: Path
) -> Iterator[tuple[dict[str, Any], int]]:
    """Distils one student with a checkpoint on the storage every few seconds.

    Args:
        config: what to do.
        storage: where the teacher lies.
        checkpoints: those of this student; the newest whole one is continued.
        folder: an empty one on this machine; in the end it holds the last checkpoint.

    Yields:
        Each epoch's report with the epoch of the newest checkpoint; those before the checkpoint
        that is continued come once more.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
    """
    workspace = workspace_of(storage)
    if storage.local is None:
        fetch_teacher(config.data, config.teacher, storage, workspace)
    reports = patiently(lambda: checkpoints.restore(folder))
    saved, due = len(reports), time.monotonic() + _CHECKPOINT_SECONDS
    for report in reports[:]:
        yield report, saved
    parts = reports[-1]["parts"] if reports else 1
    for epoch in _epochs(config, workspace, folder, parts):
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


def _epochs(
    config: TrialConfig, workspace: Path, folder: Path, parts: int
) -> Iterator[EpochReport]:
    """The trial's epochs. It goes on from the last one where the GPU's memory did not suffice,
    once, with each batch in two parts; and where a disk was full, as soon as it is not."""
    deadline = math.inf
    while True:
        try:
            for report in distill(config, workspace=workspace, checkpoint_dir=folder, parts=parts):
                deadline = math.inf
                yield report
            return
        except torch.OutOfMemoryError as error:
            if parts > 1:
                raise
            parts = 2
            print(f"each batch in two parts from here on: {error}", file=sys.stderr)
        except OSError as error:
            deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
            if error.errno not in _FULL or time.monotonic() > deadline:
                raise
            print(f"waiting for space: {error}", file=sys.stderr)
            time.sleep(RETRY_SECONDS)
        release_gpu_memory()


def release_gpu_memory() -> None:
    """Gives a trial's GPU memory back, for the trials that share the GPU with this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def train_teacher(experiment_json: str, storage_uri: str, threads: int) -> Iterator[EpochReport]:
    """Puts the teacher in place, wherever the resources are; yields what was trained."""
    experiment = Experiment.model_validate_json(experiment_json)
    torch.set_num_threads(threads)
    storage = Storage(storage_uri)
    workspace = workspace_of(storage)
    if storage.local is None:
        fetch_teacher(experiment.data, experiment.teacher, storage, workspace)
    data = open_data(experiment.data, workspace)
    yield from prepare_teacher(experiment.teacher, data, workspace)
    if storage.local is None:
        folder = teacher_folder(experiment.teacher, data, workspace)
        storage.upload(folder, f"teachers/{folder.name}")


def measure_students(experiment_json: str, storage_uri: str) -> dict[str, NetworkCost]:
    """By student, what it costs on the device that a trial would have; and in which precision and
    layout it and the teacher are fastest there, for the trials to find."""
    experiment = Experiment.model_validate_json(experiment_json)
    torch.set_num_threads(experiment.resources.cpus)
    workspace, device = workspace_of(Storage(storage_uri)), default_device()
    data = open_data(experiment.data, workspace)
    recipe = experiment.training
    if recipe.acceleration == "auto":
        for student in experiment.students:
            fastest_execution(
                student,
                build_classifier(student, data, seed=0),
                data.image_size,
                device,
                workspace,
                batch_size=recipe.batch_size,
            )
        backbone = experiment.teacher.backbone
        teacher = build_classifier(backbone, data, seed=0)
        fastest_execution(backbone, teacher, data.image_size, device, workspace)
    return {
        student: measure_network(
            student,
            num_classes=data.num_classes,
            in_channels=data.in_channels,
            image_size=data.image_size,
            device=device,
        )
        for student in experiment.students
    }


def fetch_teacher(
    data_config: DataConfig, config: TeacherConfig, storage: Storage, workspace: Path
) -> None:
    """Copies the teacher from a remote storage, where it is there and not on this machine yet."""
    data = open_data(data_config, workspace)
    folder = teacher_folder(config, data, workspace)
    if is_ready(folder) or not storage.exists(f"teachers/{folder.name}/teacher.json"):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        storage.download(f"teachers/{folder.name}", Path(partial) / folder.name)
        try:
            (Path(partial) / folder.name).rename(folder)
        except OSError:
            if not is_ready(folder):  # another trial of this machine was faster
                raise
