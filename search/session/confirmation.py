"""Retraining the best students with fresh seeds, and testing each once."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from kdcore.data.image_data import open_data
from kdcore.errors import NonFiniteLossError
from kdcore.networks.classifier import build_classifier
from kdcore.teacher_cache.patience import patiently
from kdcore.training.evaluation import default_device, evaluate
from kdcore.training.loop import best_student
from kdcore.training.report import EpochReport
from search.experiment.schema import Confirm, Experiment
from search.experiment.space.point import Point
from search.experiment.space.trial_config import epochs_on_top, trial_config
from search.record.live_record import LiveRecord
from search.record.log import RecordLog
from search.record.looks import record_look
from search.record.owner import HEARTBEAT
from search.record.record import ConfirmationRun, Confirmed, Executions
from search.record.storage import Storage, workspace_of
from search.record.trial_checkpoints import Checkpoints
from search.record.wording import percent
from search.session.contenders import contenders, fresh_seeds, missing
from search.session.live_display import LiveDisplay
from search.session.trial import release_gpu_memory, resumable_reports
from search.tracking.tracker import Tracker

# How often a run is restarted from its checkpoint after its process or machine died.
_RETRIES = 3


def run_again(
    point: Point,
    seed: int,
    *,
    experiment_json: str,
    storage_uri: str,
    folder: str,
    executions: Executions | None = None,
) -> tuple[ConfirmationRun, list[dict[str, Any]]]:
    """Trains one student with this seed, and tests it once.

    Args:
        point: its settings.
        seed: of its initial weights and of the order of its images.
        experiment_json: the experiment.
        storage_uri: where the teacher lies and the checkpoints go.
        folder: of the checkpoints, relative to the storage; a run that was cut off goes on.
        executions: of the search; none: this machine's own.

    Returns:
        What the record keeps, and each epoch's report.
    """
    experiment = Experiment.model_validate_json(experiment_json)
    torch.set_num_threads(experiment.resources.cpus)
    config = trial_config(experiment, point).model_copy(update={"seed": seed})
    storage = Storage(storage_uri)
    checkpoints = Checkpoints(storage, folder)
    with tempfile.TemporaryDirectory() as local:
        try:
            stream = resumable_reports(config, storage, checkpoints, Path(local), executions)
            reports = [report for report, _ in stream]
        except NonFiniteLossError as error:  # it would be the same again
            return ConfirmationRun(seed=seed, reason=str(error)), []
        finally:
            release_gpu_memory()
        best = best_student(Path(local))
    data = open_data(config.data, workspace_of(storage))
    student = build_classifier(config.student, data, seed=0)
    student.backbone.load_state_dict(best["student"])
    test_accuracy, _ = evaluate(student.to(default_device()), data.test)
    run = ConfirmationRun(
        seed=seed,
        accuracies=tuple(report["heldout_accuracy"] for report in reports),
        heldout_accuracy=best["accuracy"],
        heldout_loss=best["loss"],
        best_epoch=best["epoch"],
        test_accuracy=test_accuracy,
        train_seconds=sum(report["epoch_seconds"] for report in reports),
        checkpoint=folder,
    )
    return run, reports


class Confirmation:
    """The runs of one search on a connected Ray. Each is in the record as soon as it has ended.

    Args:
        search: its record; gets the runs that have ended.
        log: where that is written.
        storage: where the search is kept.
        tracker: gets each run.
        progress: says how each ended.
        parallel: how many run at a time.
    """

    def __init__(
        self,
        search: LiveRecord,
        log: RecordLog,
        storage: Storage,
        tracker: Tracker,
        progress: LiveDisplay,
        parallel: int,
    ) -> None:
        self._search, self._log, self._storage = search, log, storage
        self._tracker, self._progress, self._parallel = tracker, progress, parallel

    def run(self, asked: Confirm) -> None:
        """Trains what the record does not have yet; runs that failed are tried again."""
        chosen = contenders(self._search.record, asked.top)
        if not chosen:
            self._progress.say("no trial with a method has finished, so none is confirmed")
            return
        labels = {each.label for each in chosen}
        earlier = [each for each in self._search.head.confirmed if each.label not in labels]
        self._search.update(confirmed=(*chosen, *earlier))
        self._write()
        planned = missing(chosen, fresh_seeds(self._search.head.experiment, asked.seeds))
        if planned:
            tested = [self._folder(*run) for run in planned]
            search = self._search.head
            patiently(lambda: record_look(self._storage, search, by="confirm", students=tested))
        waiting = iter(planned)
        running: dict[Any, tuple[Confirmed, int]] = {}
        while True:
            while len(running) < self._parallel and (ahead := next(waiting, None)):
                running[self._start(*ahead)] = ahead
            if not running:
                return
            done, _ = ray.wait(list(running), timeout=HEARTBEAT.total_seconds())
            for reference in done:
                self._ended(*running.pop(reference), reference)
            self._write()

    def _start(self, contender: Confirmed, seed: int) -> Any:
        search = self._search.head
        resources = search.experiment.resources
        task: Any = ray.remote(run_again)  # type: ignore[arg-type]  # it knows no keyword arguments
        task = task.options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_retries=_RETRIES,
            retry_exceptions=True,
        )
        return task.remote(
            contender.point,
            seed,
            experiment_json=search.experiment.model_dump_json(),
            storage_uri=self._storage.uri,
            folder=self._folder(contender, seed),
            executions=search.executions,
        )

    def _folder(self, contender: Confirmed, seed: int) -> str:
        name = self._search.head.name
        return f"searches/{name}/confirmation/{contender.label}-seed{seed}"

    def _ended(self, contender: Confirmed, seed: int, reference: Any) -> None:
        reports: list[dict[str, Any]] = []
        try:
            run, reports = ray.get(reference)
        except RayTaskError as error:
            cause = str(error.cause) or repr(error.cause)
            run = ConfirmationRun(seed=seed, reason=cause.splitlines()[0])
        except RayError as error:
            run = ConfirmationRun(seed=seed, reason=str(error).splitlines()[0])
        confirmed = tuple(
            each.model_copy(update={"runs": _with(each.runs, run)})
            if each.label == contender.label
            else each
            for each in self._search.head.confirmed
        )
        self._search.update(confirmed=confirmed)
        words = self._search.head.words(contender)
        outcome = (
            f"failed ({run.reason})"
            if run.reason
            else f"held-out {percent(run.heldout_accuracy)} %, test {percent(run.test_accuracy)} %"
        )
        self._progress.say(f"again with seed {seed}: {outcome}, {words}")
        self._tracker.log_confirmation(
            f"{contender.label}-seed{seed}",
            words,
            contender.trial,
            _params(self._search.head.experiment, contender, seed),
            [EpochReport(**report) for report in reports],
            run,
        )

    def _write(self) -> None:
        """Writes the record; a storage that is away gets it at the next event or heartbeat."""
        self._search.update(**self._tracker.ids)
        try:
            self._log.write(self._search)
        except OSError as error:
            print(f"the record could not be written: {error}", file=sys.stderr)


def _with(runs: tuple[ConfirmationRun, ...], run: ConfirmationRun) -> tuple[ConfirmationRun, ...]:
    """The runs with a new one, in the place of an earlier one with its seed."""
    others = [each for each in runs if each.seed != run.seed]
    return tuple(sorted((*others, run), key=lambda each: each.seed))


def _params(experiment: Experiment, contender: Confirmed, seed: int) -> Mapping[str, str]:
    return {
        "objective": contender.objective,
        "student": contender.student,
        "teacher": experiment.teacher.backbone,
        "data": experiment.data.name,
        "epochs": str(experiment.training.epochs + epochs_on_top(experiment, contender.point)),
        "seed": str(seed),
    }
