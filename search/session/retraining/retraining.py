"""Training students again on Ray, each with several seeds, and testing each run once."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from kdcore.contract.plugin_faults import HangError, ending_hangs
from kdcore.data.image_data import open_data
from kdcore.teacher_cache.patience import patiently
from kdcore.training.evaluation import default_device
from kdcore.training.judging import evaluate_as_judged
from kdcore.training.loop import best_classifier, best_student
from kdcore.training.report import EpochReport
from search.experiment.running import experiment_to_run
from search.experiment.space.point import Point
from search.experiment.space.trial_config import epochs_on_top, trial_config
from search.record.live_record import LiveRecord
from search.record.log import RecordLog
from search.record.looks import record_look
from search.record.networks import Executions
from search.record.owner import HEARTBEAT
from search.record.record import ConfirmationRun, Confirmed, SearchRecord
from search.record.storage import Storage, workspace_of
from search.record.trial_checkpoints import Checkpoints
from search.record.wording import duration, percent, percent_of
from search.report.reproduction.table import row_in_words
from search.session.faults import lasting_fault
from search.session.live_display import LiveDisplay
from search.session.scratch import scratch_folder
from search.session.trial import release_gpu_memory, resumable_reports
from search.session.worker_group import bundles, in_bundle
from search.tracking.tracker import Tracker, teacher_param

# How often a run is restarted from its checkpoint after its process or machine died.
_RETRIES = 3


@ending_hangs()
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
    experiment = experiment_to_run(experiment_json)
    torch.set_num_threads(experiment.resources.cpus)
    config = trial_config(experiment, point).model_copy(update={"seed": seed})
    storage = Storage(storage_uri)
    checkpoints = Checkpoints(storage, folder)
    with scratch_folder() as local:
        try:
            stream = resumable_reports(
                config, storage, checkpoints, local, executions, experiment.resources
            )
            reports = [report for report, _ in stream]
        except (Exception, SystemExit, HangError) as error:
            if not (reason := lasting_fault(error)):
                raise
            return ConfirmationRun(seed=seed, reason=reason), []
        finally:
            release_gpu_memory()
        best = best_student(local)
    data = open_data(config.data, workspace_of(storage))
    student = best_classifier(config.student.backbone, data, best)
    tested = evaluate_as_judged(student.to(default_device()), data, data.test)
    metric = config.metric
    images_in_step = config.training.images_in_step
    run = ConfirmationRun(
        seed=seed,
        accuracies=tuple(report["heldout_accuracy"] for report in reports),
        heldout_accuracy=best["accuracy"],
        heldout_loss=best["loss"],
        best_epoch=best["epoch"],
        test_accuracy=tested.accuracy,
        test_balanced_accuracy=tested.balanced_accuracy,
        test_top5=tested.top5,
        heldout_score=None if metric == "accuracy" else best["score"],
        test_score=None if metric == "accuracy" else tested.by(metric),
        train_seconds=sum(report["epoch_seconds"] for report in reports),
        images=len(reports) * (len(data.taught) // images_in_step) * images_in_step,
        checkpoint=folder,
    )
    return run, reports


@dataclass(frozen=True)
class Asked:
    """What is trained again.

    Args:
        students: with the runs that they have already.
        seeds: of the runs that each of them is to have.
        by: the command.
    """

    students: tuple[Confirmed, ...]
    seeds: tuple[int, ...]
    by: Literal["confirm", "reproduce"]

    @property
    def missing(self) -> list[tuple[Confirmed, int]]:
        """The runs that have not ended well yet. All students with one seed come first, so that
        whatever is there after an interruption can be compared."""
        return [
            (each, seed)
            for seed in self.seeds
            for each in self.students
            if seed not in each.test_accuracies
        ]


class Retraining:
    """The runs of one record on a connected Ray. Each is in it as soon as it has ended.

    Args:
        search: the record; gets the runs that have ended.
        log: where that is written.
        storage: where the record is kept.
        tracker: gets each run.
        progress: says how each ended.
        parallel: how many run at a time.
        ended: called after each run.
    """

    def __init__(
        self,
        search: LiveRecord,
        log: RecordLog,
        storage: Storage,
        tracker: Tracker,
        progress: LiveDisplay,
        parallel: int,
        ended: Callable[[SearchRecord], None] = lambda record: None,
    ) -> None:
        self._search, self._log, self._storage = search, log, storage
        self._tracker, self._progress, self._parallel = tracker, progress, parallel
        self._when_ended = ended
        self._groups: dict[tuple[str, int], PlacementGroup] = {}

    def run(self, asked: Asked) -> None:
        """Trains what the record does not have yet; runs that failed are tried again."""
        labels = {each.label for each in asked.students}
        earlier = [each for each in self._search.head.confirmed if each.label not in labels]
        self._search.update(confirmed=(*asked.students, *earlier))
        self._write()
        planned = asked.missing
        if planned:
            tested = [self._folder(*run) for run in planned]
            search = self._search.head
            patiently(lambda: record_look(self._storage, search, by=asked.by, students=tested))
        self._progress.retraining_started(self._search.head.name, len(planned))
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
            if done:
                self._when_ended(self._search.record)

    def _start(self, contender: Confirmed, seed: int) -> Any:
        search = self._search.head
        resources = search.experiment.resources
        task: Any = ray.remote(run_again)  # type: ignore[arg-type]  # it knows no keyword arguments
        place: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
        if resources.workers > 1:
            group = self._groups[contender.label, seed] = placement_group(bundles(resources))
            place = in_bundle(group, 0, resources)
        task = task.options(max_retries=_RETRIES, retry_exceptions=True, **place)
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
        if (group := self._groups.pop((contender.label, seed), None)) is not None:
            remove_placement_group(group)
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
        head = self._search.head
        words = head.words(contender)
        said = f"again with seed {seed}: {_outcome(head, run)}, {words}"
        if head.reproduces:
            row = row_in_words(contender.label)
            said = f"{head.reproduces}: {row}, seed {seed}: {_outcome(head, run)}"
        self._progress.run_ended(said)
        self._tracker.log_confirmation(
            f"{contender.label}-seed{seed}",
            words,
            contender.trial,
            _params(head, contender, seed),
            [EpochReport(**report) for report in reports],
            run,
            {"kdsearch.reproduces": head.reproduces} if head.reproduces else {},
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


def _outcome(search: SearchRecord, run: ConfirmationRun) -> str:
    """How a run ended, in words."""
    if run.reason:
        return f"failed ({run.reason})"
    if search.reproduces:  # where the test split takes the held-out part's place
        last, best = percent(run.accuracies[-1]), percent(run.heldout_accuracy)
        return f"last epoch {last} %, best {best} %, {duration(run.train_seconds)}"
    held = percent(run.heldout_by_metric)
    return f"held-out {held} %, test {percent_of(search.metric, run.test_by_metric)}"


def _params(search: SearchRecord, contender: Confirmed, seed: int) -> Mapping[str, str]:
    experiment = search.experiment
    return {
        "objective": contender.objective,
        "student": contender.student,
        "teacher": teacher_param(search, contender),
        "data": experiment.data.name,
        "epochs": str(experiment.training.epochs + epochs_on_top(experiment, contender.point)),
        "seed": str(seed),
    }
