"""Running a search: Ray, the teacher, the tuner, and the record of what happens."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

# Tune's own CSV, JSON and TensorBoard files repeat what MLflow keeps; usage reports leave the
# machine.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # see _stopping_on_ctrl_c

# Clusters ask for the token, and Ray's client sends it only when told so before it is imported.
if (Path.home() / ".ray" / "auth_token").exists():
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
import yaml
from ray import tune
from ray.exceptions import RayTaskError
from rich.console import Console

from kdcore.classifier import ClassifierCard
from kdcore.measure import NetworkCost
from kdcore.training import EpochReport
from search.asha import ControlSparingAsha
from search.experiment import (
    CONTROL,
    NAME_PATTERN,
    Experiment,
    ExperimentError,
    Problem,
    SearchFailedError,
)
from search.leaderboard import percent
from search.preflight import Plan, plan
from search.progress import Progress
from search.record import (
    HEARTBEAT,
    SearchRecord,
    TrialRecord,
    interrupted,
    search_storage,
    write_record,
)
from search.searcher import TrueStateOptunaSearch
from search.space import trial_config
from search.storage import Storage
from search.tracking import Tracker
from search.trial import measure_students, run_trial, train_teacher

# The record is also written when a trial starts or ends; between, epochs need not be shown at once.
_EPOCHS_WRITTEN_EVERY_SECONDS = 5.0

_PACKAGES = ("kdsearch", "torch", "ray", "optuna", "mlflow", "pyarrow")


def local_home(storage: Storage) -> Path:
    """The folder on this machine for logs, the embedded MLflow store and exports."""
    return storage.local or Path("runs").absolute()


def default_tracking_uri(storage: Storage) -> str:
    """The embedded MLflow store."""
    return f"sqlite:///{local_home(storage) / 'mlflow.db'}"


def free_name(storage: Storage, task: str) -> str:
    """The task's name with the first number that no search has."""
    taken = set((storage / "searches").names())
    number = 1
    while f"{task}-{number}" in taken:
        number += 1
    return f"{task}-{number}"


@contextmanager
def output_to(log: Path) -> Iterator[Console]:
    """Sends whatever this process and its children print to a file; yields the console that stays.

    The file descriptors themselves are exchanged, so that libraries and child processes obey as
    well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab") as file, os.fdopen(os.dup(1), "w") as screen:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield Console(file=screen)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, source in enumerate(kept, start=1):
                os.dup2(source, target)
                os.close(source)


def launch(
    experiment: Experiment,
    *,
    source: str,
    storage: Storage,
    name: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
) -> SearchRecord:
    """Runs a search to its end, or until Ctrl-C.

    Args:
        experiment: what to search.
        source: the experiment's file, for messages.
        storage: where teachers and searches are kept; on a cluster every node must reach it.
        name: of the search; none: the task's name and a number.
        address: of a Ray cluster; none: Ray is started on this machine.
        tracking_uri: of MLflow; none: a SQLite file below the storage.

    Raises:
        ExperimentError: the experiment cannot be run; nothing was made.
        SearchFailedError: Ray could not be reached, or the teacher could not be trained.
    """
    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        message = f"{name!r} is no name: letters, digits, '.', '_' and '-', at most 100, please"
        raise ExperimentError("--name", [Problem(key="", message=message)])
    prepared = plan(experiment, storage, source)
    if name is not None and name in (storage / "searches").names():
        message = f"{name!r} is taken; choose another, or leave --name out"
        raise ExperimentError("--name", [Problem(key="", message=message)])
    name = name or free_name(storage, experiment.name)
    home = local_home(storage)
    log = home / "logs" / f"{name}.log"
    with output_to(log) as console, Progress(console) as progress:
        progress.say(f"search {name}; what Ray and MLflow say goes to {_short(log)}")
        _connect(address, log)
        try:
            return _Search(prepared, storage, name, tracking_uri, progress, log).run()
        finally:
            ray.shutdown()


def _short(path: Path) -> str:
    """A path as the user would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _connect(address: str | None, log: Path) -> None:
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
        else:
            host, colon, port = address.removeprefix("ray://").rpartition(":")
            if colon and port.isdigit():
                # Ray itself knocks at a closed port for minutes, without a word.
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise SearchFailedError(
            f"no Ray at {address or 'this machine'}: {str(error).splitlines()[0]}; "
            f"see {_short(log)}"
        ) from None


class _Search:
    """One search on a connected Ray."""

    def __init__(
        self,
        prepared: Plan,
        storage: Storage,
        name: str,
        tracking_uri: str | None,
        progress: Progress,
        log: Path,
    ) -> None:
        self._plan, self._storage, self._progress, self._log = prepared, storage, progress, log
        self._trainable: Callable[..., None] = run_trial
        # A warm process saves its start and the import of torch; run_trial gives its GPU memory
        # back. One that failed is not used again.
        self._reuse_actors = True
        uri = tracking_uri or default_tracking_uri(storage)
        artifacts = local_home(storage) / "mlartifacts"
        self._tracker = Tracker(uri, artifacts)
        now = datetime.now(UTC)
        self._record = SearchRecord(
            name=name,
            experiment=prepared.experiment,
            state="running",
            tracking_uri=uri,
            started=now,
            updated=now,
        )

    def run(self) -> SearchRecord:
        experiment = self._plan.experiment
        self._record = write_record(self._storage, self._record)
        resolved = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
        search_storage(self._storage, self._record.name).write("experiment.yaml", resolved.encode())
        self._tracker.start_search(
            self._record,
            resolved,
            {
                "seed": str(experiment.seed),
                "sampler_seed": str(experiment.search.seed),
                **{f"version_{package}": version(package) for package in _PACKAGES},
            },
        )
        try:
            self._prepare_teacher()
            self._measure_students()
            self._run_trials()
        except KeyboardInterrupt:
            self._record = interrupted(self._record)
        except BaseException:
            self._record = interrupted(self._record).model_copy(update={"state": "failed"})
            raise
        finally:
            for trial in self._record.trials:
                if trial.state == "interrupted":  # by Ctrl-C or a crash: no callback told of it
                    self._tracker.end_trial(trial)
            self._tracker.end_search(self._record)
            lost = self._tracker.close()
            self._record = write_record(
                self._storage, self._record.model_copy(update=self._tracker.ids)
            )
            if lost:
                self._progress.say(
                    f"MLflow missed {lost} of this search's entries; the leaderboard has them all. "
                    f"See {_short(self._log)}"
                )
        return self._record

    def _prepare_teacher(self) -> None:
        config = self._plan.experiment.teacher
        reports: list[EpochReport] = []
        if self._plan.teacher_ready and self._storage.local is not None:
            self._progress.say(f"teacher {config.backbone}: found")
        else:
            self._progress.say(f"teacher {config.backbone}: getting it ready")
            reports = self._run_teacher_task()
        folder = f"teachers/{self._plan.teacher_path.name}"
        card = self._storage.read(f"{folder}/teacher.json")
        metrics = ClassifierCard.model_validate_json(card).metrics
        self._progress.say(
            f"teacher {config.backbone}: held-out {percent(metrics['heldout_accuracy'])} %"
        )
        self._record = self._record.model_copy(
            update={"teacher": folder, "teacher_metrics": metrics}
        )
        self._tracker.log_teacher(config.backbone, reports, metrics)

    def _run_teacher_task(self) -> list[EpochReport]:
        """Trains the teacher where the cluster has room, with all cores of a machine."""
        experiment = self._plan.experiment
        nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
        cores = max(int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"])
        task = ray.remote(train_teacher).options(
            num_cpus=cores, num_gpus=experiment.resources.gpus, num_returns="streaming"
        )
        reports = []
        try:
            stream: Any = task.remote(experiment.model_dump_json(), self._storage.uri, cores)
            for reference in stream:
                report: EpochReport = ray.get(reference)
                self._progress.teacher_epoch(report)
                reports.append(report)
        except RayTaskError as error:
            raise SearchFailedError(f"the teacher failed: {error.cause}") from None
        return reports

    def _measure_students(self) -> None:
        """Measures what the students cost with a trial's resources, while nothing else runs."""
        experiment, data = self._plan.experiment, self._plan.data
        task = ray.remote(measure_students).options(
            num_cpus=experiment.resources.cpus, num_gpus=experiment.resources.gpus
        )
        try:
            costs: dict[str, NetworkCost] = ray.get(
                task.remote(
                    experiment.model_dump_json(),
                    data.num_classes,
                    data.in_channels,
                    data.image_size,
                )
            )
        except RayTaskError as error:
            raise SearchFailedError(f"a student could not be measured: {error.cause}") from None
        self._record = self._record.model_copy(update={"student_costs": costs})

    def _run_trials(self) -> None:
        experiment = self._plan.experiment
        resources, search = experiment.resources, experiment.search
        parallel = self._parallel()
        epochs = experiment.training.epochs
        self._record = write_record(self._storage, self._record)
        callback = _RecordingCallback(self._record, self._storage, self._tracker, self._progress)
        trainable = tune.with_resources(
            tune.with_parameters(
                self._trainable,
                experiment_json=experiment.model_dump_json(),
                storage_uri=self._storage.uri,
            ),
            {"cpu": resources.cpus, "gpu": resources.gpus},
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                num_samples=search.trials,
                search_alg=TrueStateOptunaSearch(
                    self._plan.space,
                    trials=search.trials,
                    parallel=parallel,
                    epochs=epochs,
                    seed=search.seed,
                ),
                scheduler=ControlSparingAsha(search.asha, epochs=epochs) if search.asha else None,
                # Without it Tune keeps one trial pending, and a cluster grows one node at a time.
                max_concurrent_trials=parallel,
                trial_dirname_creator=_folder_of,
                reuse_actors=self._reuse_actors,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=search_storage(self._storage, self._record.name).uri,
                callbacks=[callback],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
                verbose=0,
            ),
        )
        self._progress.search_started()
        try:
            with _stopping_on_ctrl_c(self._progress):
                tuner.fit()
        finally:
            self._record = callback.record
        # After Ctrl-C Tune returns as if all were done.
        if any(trial.state == "running" for trial in self._record.trials) or (
            len(self._record.trials) < search.trials
        ):
            self._record = interrupted(self._record)
        else:
            self._record = self._record.model_copy(update={"state": "finished"})

    def _parallel(self) -> int:
        """How many trials run at a time: what was asked for, else what the cluster holds now.

        Raises:
            SearchFailedError: the cluster has no room for one trial.
        """
        experiment = self._plan.experiment
        resources = experiment.resources
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        slots = int(total.get("CPU", 0) // resources.cpus)
        if resources.gpus:
            slots = min(slots, int(total.get("GPU", 0) / resources.gpus))
        if slots == 0 and experiment.search.concurrent_trials is None:
            raise SearchFailedError(
                f"a trial needs {resources.cpus} CPUs and {resources.gpus:g} GPUs, but the cluster "
                f"has {total.get('CPU', 0):g} and {total.get('GPU', 0):g}; change resources, or "
                f"name search.concurrent_trials where the cluster will grow"
            )
        return experiment.search.concurrent_trials or slots


@contextmanager
def _stopping_on_ctrl_c(progress: Progress) -> Iterator[None]:
    """The first Ctrl-C ends the search cleanly and says so at once, the second as usual.

    Tune's own handler only writes to its log; it is switched off, and told through SIGUSR1.
    """
    usual = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, usual)
        progress.say("stopping; Ctrl-C again ends at once")
        os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _folder_of(trial: Any) -> str:
    """A trial's folder; Tune's own name repeats all settings, too long for some file systems."""
    return f"trial_{trial.trial_id}"


class _RecordingCallback(tune.Callback):
    """Keeps the search's record true, and tells MLflow and the display."""

    def __init__(
        self, record: SearchRecord, storage: Storage, tracker: Tracker, progress: Progress
    ) -> None:
        self.record = record
        self._storage, self._tracker, self._progress = storage, tracker, progress
        self._written = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks beside the search; threads and consoles stay behind.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._known(trials, trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        report = EpochReport(**{name: result[name] for name in EpochReport.__annotations__})
        known = self._known(trials, trial)
        changes: dict[str, Any] = {
            "epochs_done": report.epoch,
            "heldout_accuracy": report.best_heldout_accuracy,
            "best_epoch": report.best_epoch,
            "train_seconds": known.train_seconds + report.epoch_seconds,
            "views_computed": known.views_computed + (report.teacher == "computed"),
            "views_cached": known.views_cached + (report.teacher == "cached"),
            "teacher_seconds_saved": known.teacher_seconds_saved + report.teacher_seconds_saved,
        }
        if report.best_epoch == report.epoch:
            changes["heldout_loss"] = report.heldout_loss
        self._change(known.model_copy(update=changes))
        self._tracker.log_epoch(known.number, report)
        self._progress.update(self.record)
        if time.monotonic() - self._written > _EPOCHS_WRITTEN_EVERY_SECONDS:
            self._write()

    def on_checkpoint(
        self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any
    ) -> None:
        path = self._storage.relative(checkpoint.path)
        self._change(self._known(trials, trial).model_copy(update={"checkpoint": path}))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        known = self._known(trials, trial)
        state = "finished" if known.epochs_done == known.epochs else "stopped"
        self._end(known.model_copy(update={"state": state}))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # The last line of a traceback is the error itself, after the name of its class.
        text = Path(trial.error_file).read_text() if trial.error_file else "unknown"
        reason = text.strip().splitlines()[-1].rpartition("Error: ")[2]
        changes = {"state": "failed", "reason": reason}
        self._end(self._known(trials, trial).model_copy(update=changes))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._written > HEARTBEAT.total_seconds():
            self._write()

    def _known(self, trials: list[Any], trial: Any) -> TrialRecord:
        """A trial's record; its first appearance opens one, and a run in MLflow.

        Trials do not always start in the order of their numbers.
        """
        number = trials.index(trial)
        for known in self.record.trials:
            if known.number == number:
                return known
        experiment = self.record.experiment
        config = trial_config(experiment, trial.config)
        opened = TrialRecord(
            number=number,
            student=config.student,
            point=trial.config,
            objective=" + ".join(map(str, config.objective)) or CONTROL,
            state="running",
            epochs=experiment.training.epochs,
        )
        self._change(opened)
        self._tracker.start_trial(
            opened,
            self.record.words(opened),
            {
                "student": config.student,
                "teacher": experiment.teacher.backbone,
                "data": experiment.data.name,
                "learning_rate": str(config.training.learning_rate),
                "epochs": str(config.training.epochs),
                "seed": str(config.seed),
            },
            self.record.student_costs.get(config.student),
        )
        self._write()
        return opened

    def _change(self, changed: TrialRecord) -> None:
        others = [trial for trial in self.record.trials if trial.number != changed.number]
        ordered = sorted((*others, changed), key=lambda trial: trial.number)
        self.record = self.record.model_copy(update={"trials": tuple(ordered)})

    def _end(self, ended: TrialRecord) -> None:
        self._change(ended)
        self._tracker.end_trial(ended)
        self._progress.trial_ended(ended, self.record)
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self.record = write_record(self._storage, self.record.model_copy(update=self._tracker.ids))
        self._progress.update(self.record)
