"""Running a search: Ray, the teacher, the tuner, and the record of what happens."""

import fcntl
import io
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from unittest.mock import patch

# Tune's own CSV, JSON and TensorBoard files repeat what MLflow keeps; usage reports leave the
# machine.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # see _stopping_on_ctrl_c

import ray
import yaml
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from rich.console import Console

from kdcore.classifier import ClassifierCard
from kdcore.measure import NetworkCost
from kdcore.training import EpochReport
from search.asha import ControlSparingAsha
from search.checkpoints import trial_folder
from search.cluster import machines, strangers, trial_places, what_there_is
from search.confirm import Confirmation, contenders
from search.experiment import (
    CONTROL,
    Confirm,
    Experiment,
    ExperimentError,
    Problem,
    SearchFailedError,
    check_name,
    with_budgets,
)
from search.leaderboard import percent
from search.preflight import Plan, cautions, plan, tracking_caution
from search.progress import Progress, duration
from search.record import (
    HEARTBEAT,
    REASON,
    SAVED,
    SILENCE,
    SearchRecord,
    TrialRecord,
    interrupted,
    read_record,
    search_storage,
    write_record,
)
from search.report import Reporter
from search.rungs import Rungs
from search.searcher import TrueStateOptunaSearch
from search.space import NUMBER, trial_config
from search.storage import Storage, default_tracking_uri, local_home, patiently
from search.tracking import Tracker
from search.trial import measure_students, run_trial, train_teacher

# The record is also written when a trial starts or ends; between, epochs need not be shown at once.
_EPOCHS_WRITTEN_EVERY_SECONDS = 5.0

# A trial whose process or machine died, or that raised an error, is started again so many times.
_RETRIES = 3

_PACKAGES = ("kdsearch", "torch", "ray", "optuna", "mlflow", "pyarrow")


def free_name(storage: Storage, task: str) -> str:
    """The task's name with the first number that no search has."""
    taken = set((storage / "searches").names())
    number = 1
    while f"{task}-{number}" in taken:
        number += 1
    return f"{task}-{number}"


class _Log(io.TextIOBase):
    """What replaces the standard output: nobody who prints fails because the disk is full."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(1, text.encode(errors="replace"))
        return len(text)

    def fileno(self) -> int:
        return 1


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
            with redirect_stdout(_Log()), redirect_stderr(_Log()):
                yield Console(file=screen)
        finally:
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
    if name is not None:
        check_name(name)
    prepared = plan(experiment, storage, source)
    if name is not None and name in (storage / "searches").names():
        message = f"{name!r} is taken; choose another, or leave --name out"
        raise ExperimentError("--name", [Problem(key="", message=message)])
    record = fresh_record(
        experiment, storage, name or free_name(storage, experiment.name), tracking_uri
    )
    with _only_process(storage, record):
        return _run(prepared, storage, record, address)


def fresh_record(
    experiment: Experiment, storage: Storage, name: str, tracking_uri: str | None
) -> SearchRecord:
    """The record of a search that has not begun; without a URI, MLflow's is the embedded store."""
    now = datetime.now(UTC)
    return SearchRecord(
        name=name,
        experiment=experiment,
        state="running",
        tracking_uri=tracking_uri or default_tracking_uri(storage),
        started=now,
        updated=now,
    )


def resume(
    name: str,
    *,
    storage: Storage,
    address: str | None = None,
    more_trials: int = 0,
    overrides: Sequence[str] = (),
) -> SearchRecord:
    """Goes on with a search that was cut off, or extends one that has ended.

    Trials that have ended stay as they are. Those that were cut off go on from their checkpoints.
    What early stopping and the sampler know is built from the record.

    Args:
        name: of the search.
        storage: where it is kept.
        address: of a Ray cluster; none: Ray is started on this machine.
        more_trials: how many to add to those that the experiment asks for.
        overrides: of the budgets, like `search.hours=4`.

    Raises:
        ValueError: there is no such search, it still runs, or its budget is spent.
        ExperimentError: the experiment cannot be run any more.
        SearchFailedError: as `launch`.
    """
    record = read_record(storage, name)
    with _only_process(storage, record):
        record = read_record(storage, name)
        experiment = with_budgets(record.experiment, overrides)
        search = experiment.search
        search = search.model_copy(update={"trials": search.trials + more_trials})
        experiment = experiment.model_copy(update={"search": search})
        changes = {"experiment": experiment, "state": "running", "ended": ""}
        record = interrupted(record).model_copy(update=changes)
        unfinished = sum(not trial.unfinished for trial in record.trials) < search.trials
        if unfinished and record.spent_budget:
            raise ValueError(
                f"{record.spent_budget}, {record.cost} in all; "
                f"give it more with --set search.hours=..., gpu_hours or cpu_hours"
            )
        return _run(plan(experiment, storage, name), storage, record, address)


def confirm(
    name: str,
    *,
    storage: Storage,
    address: str | None = None,
    top: int | None = None,
    seeds: int | None = None,
) -> SearchRecord:
    """Trains a search's best students again with fresh seeds, and looks at the test split once for
    each. What an earlier call has done stays.

    Args:
        name: of the search.
        storage: where it is kept.
        address: of a Ray cluster; none: Ray is started on this machine.
        top: how many trials; none: as the experiment says, else as `Confirm` does.
        seeds: runs of each; likewise.

    Raises:
        ValueError: there is no such search, it still runs, or none of its trials with a method has
            finished.
        ExperimentError: the experiment cannot be run any more.
        SearchFailedError: as `launch`.
        KeyboardInterrupt: Ctrl-C cut it off; what had ended is in the record.
    """
    record = read_record(storage, name)
    with _only_process(storage, record):
        record = interrupted(read_record(storage, name))
        asked = record.experiment.confirm or Confirm()
        asked = Confirm(top=top or asked.top, seeds=seeds or asked.seeds)
        if not contenders(record, asked.top):
            raise ValueError(
                f"no trial of {name} with a method has finished, so there is none to confirm"
            )
        record = record.model_copy(update={"state": "running"})
        prepared = plan(record.experiment, storage, name)
        return _run(prepared, storage, record, address, confirm_only=asked)


@contextmanager
def _only_process(storage: Storage, record: SearchRecord) -> Iterator[None]:
    """Holds a search for this process.

    A lock, which ends with its process however that ends, tells on one machine. A search that runs
    on another one is known by its record, which it writes again and again.

    Raises:
        ValueError: another process runs the search.
    """
    folder = local_home(storage) / "searches" / record.name
    folder.mkdir(parents=True, exist_ok=True)
    busy = record.host not in ("", socket.gethostname()) and record.state == "running"
    with (folder / "process.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            busy = True
        if busy:
            raise ValueError(
                f"search {record.name!r} still runs on {record.host or socket.gethostname()}; "
                f"stop it there, or wait until it has been silent for {duration(SILENCE.seconds)}"
            )
        try:
            yield
        finally:
            # A search that never began leaves nothing.
            if [path.name for path in folder.iterdir()] == ["process.lock"]:
                (folder / "process.lock").unlink()
                folder.rmdir()
                with suppress(OSError):
                    folder.parent.rmdir()


def _run(
    prepared: Plan,
    storage: Storage,
    record: SearchRecord,
    address: str | None,
    confirm_only: Confirm | None = None,
) -> SearchRecord:
    log = local_home(storage) / "logs" / f"{record.name}.log"
    with output_to(log) as console, Progress(console) as progress:
        progress.say(f"search {record.name}; what Ray and MLflow say goes to {_short(log)}")
        uri = record.tracking_uri
        for caution in (*cautions(record.experiment), *tracking_caution(uri)):
            progress.say(f"caution: {caution}")
        _connect(address, log)
        try:
            return _Search(prepared, storage, record, progress, log).run(confirm_only)
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


def _places_for_trials(experiment: Experiment, storage: Storage) -> int:
    """How many trials run at a time: what was asked for, else what the cluster holds now.

    Raises:
        SearchFailedError: the cluster has no room for one trial, or a machine does not see the
            storage.
    """
    resources, asked = experiment.resources, experiment.search.concurrent_trials
    places = trial_places(resources)
    if places == 0 and asked is None:
        raise SearchFailedError(
            f"a trial needs {resources.cpus} CPUs and {resources.gpus:g} GPUs on one machine, "
            f"but there is {what_there_is()}; change resources, or name "
            f"search.concurrent_trials where the cluster will grow"
        )
    if len(machines()) > 1 and (found := strangers(storage)):
        raise SearchFailedError(
            f"{storage.uri} is not shared by all machines ({'; '.join(found)}); give --storage a "
            f"folder that all of them mount, or a bucket like s3://bucket/folder"
        )
    return asked or places


def check_cluster(experiment: Experiment, storage: Storage, address: str) -> None:
    """Refuses what a search would refuse of a cluster.

    Raises:
        SearchFailedError: there is no cluster, it has no room for a trial, or a machine does not
            see the storage.
    """
    log = local_home(storage) / "logs" / "check.log"
    with output_to(log):
        _connect(address, log)
        try:
            _places_for_trials(experiment, storage)
        finally:
            ray.shutdown()


class _Search:
    """One search on a connected Ray."""

    def __init__(
        self,
        prepared: Plan,
        storage: Storage,
        record: SearchRecord,
        progress: Progress,
        log: Path,
    ) -> None:
        self._parallel = _places_for_trials(prepared.experiment, storage)
        self._plan, self._storage, self._progress, self._log = prepared, storage, progress, log
        self._trainable: Callable[..., None] = run_trial
        # A warm process saves its start and the import of torch; run_trial gives its GPU memory
        # back. One that failed is not used again.
        self._reuse_actors = True
        self._record = record.model_copy(update={"host": socket.gethostname()})
        home = local_home(storage)
        self._folder = home / "searches" / record.name
        self._tracker = Tracker(
            record.tracking_uri,
            home / "mlartifacts",
            self._folder / "mlflow.jsonl",
            record,
            prepared.data,
        )
        report = self._folder / "report"
        self._reporter = Reporter(report, lambda: self._tracker.log_report(report))

    def run(self, confirm_only: Confirm | None = None) -> SearchRecord:
        """Runs the trials, and what the experiment wants confirmed; or only a confirmation."""
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
            with self._heartbeat():
                self._prepare_teacher()
                self._measure_students()
            if confirm_only is None:
                self._run_trials()
            asked = confirm_only
            if asked is None and self._record.state == "finished":
                asked = experiment.confirm
            if asked is not None:
                self._confirm(asked)
        except KeyboardInterrupt:
            self._record = interrupted(self._record)
            if confirm_only is not None:
                self._record = self._record.model_copy(update={"state": self._state_of_trials})
                raise
        except BaseException:
            self._record = interrupted(self._record).model_copy(update={"state": "failed"})
            raise
        finally:
            for trial in self._record.trials:
                if trial.state == "interrupted":  # by Ctrl-C or a crash: no callback told of it
                    self._tracker.end_trial(trial)
            self._tracker.log_view(self._record)
            self._tracker.end_search(self._record)
            self._reporter.finish(self._record)
            lost = self._tracker.close()
            self._record = self._record.model_copy(update=self._tracker.ids)
            self._record = patiently(lambda: write_record(self._storage, self._record))
            if lost:
                self._progress.say(
                    f"MLflow missed {lost} of this search's entries; the leaderboard has them all. "
                    f"kdsearch resume {self._record.name} brings them to it; "
                    f"see {_short(self._log)}"
                )
        return self._record

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Writes the record now and then: the teacher may take long, and so may a machine that a
        growing cluster has to start for it."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT.total_seconds()):
                with suppress(OSError):
                    write_record(self._storage, self._record)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

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
        there = (int(machine["Resources"].get("CPU", 0)) for machine in machines())
        # A cluster that grows may have no machine for trials yet.
        cores = max(experiment.resources.cpus, *there)
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
        experiment = self._plan.experiment
        if self._record.student_costs.keys() >= set(experiment.students):
            return
        task = ray.remote(measure_students).options(
            num_cpus=experiment.resources.cpus, num_gpus=experiment.resources.gpus
        )
        try:
            costs: dict[str, NetworkCost] = ray.get(
                task.remote(experiment.model_dump_json(), self._storage.uri)
            )
        except RayTaskError as error:
            raise SearchFailedError(f"a student could not be measured: {error.cause}") from None
        self._record = self._record.model_copy(update={"student_costs": costs})

    def _run_trials(self) -> None:
        experiment = self._plan.experiment
        resources, search = experiment.resources, experiment.search
        epochs = experiment.training.epochs
        self._record = patiently(lambda: write_record(self._storage, self._record))
        recorded = self._record.trials
        remaining = search.trials - sum(not trial.unfinished for trial in recorded)
        if remaining <= 0:
            self._record = self._record.model_copy(update={"state": "finished"})
            return
        scheduler = None
        if search.asha is not None:
            rungs = Rungs(search.asha, epochs=epochs)
            for trial in recorded:
                rungs.add_curve(trial.number, trial.accuracies)
            scheduler = ControlSparingAsha(rungs, epochs=epochs)
        searcher = TrueStateOptunaSearch(
            self._plan.space,
            trials=search.trials,
            parallel=self._parallel,
            epochs=epochs,
            seed=search.seed,
            recorded=recorded,
            earlier=self._earlier_trials(),
        )
        callback = _RecordingCallback(
            self._record, self._storage, self._tracker, self._reporter, self._progress
        )
        trainable = tune.with_resources(
            tune.with_parameters(
                self._trainable,
                experiment_json=experiment.model_dump_json(),
                storage_uri=self._storage.uri,
                search=self._record.name,
            ),
            {"cpu": resources.cpus, "gpu": resources.gpus},
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                num_samples=remaining,
                search_alg=searcher,
                scheduler=scheduler,
                # Without it Tune keeps one trial pending, and a cluster grows one node at a time.
                max_concurrent_trials=self._parallel,
                trial_dirname_creator=_folder_of,
                reuse_actors=self._reuse_actors,
            ),
            run_config=tune.RunConfig(
                # What Tune writes is of no use to a later session, and must not end the search
                # when the storage is away.
                name="tune",
                storage_path=str(self._folder),
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                verbose=0,
            ),
        )
        self._progress.search_started(self._record)
        if search.warm_start:
            self._progress.say(f"warm start: {searcher.adopted} trials of earlier searches fit")
        try:
            with _stopping_on_ctrl_c(self._progress), _outlasting_full_memory():
                tuner.fit()
        finally:
            self._record = callback.record
        # After Ctrl-C, and when a budget is spent, Tune returns as if all were done.
        if sum(not trial.unfinished for trial in self._record.trials) < search.trials:
            self._record = interrupted(self._record)
        else:
            self._record = self._record.model_copy(update={"state": "finished"})
        if self._record.ended:
            self._progress.say(f"{self._record.ended}; the search ends with what it has")
            self._record = self._record.model_copy(update={"state": "finished"})

    def _confirm(self, asked: Confirm) -> None:
        running = self._record.model_copy(update={"state": "running"})
        confirmation = Confirmation(
            running, self._storage, self._tracker, self._progress, self._parallel
        )
        self._progress.update(running)
        # A cluster stops a job by SIGTERM; it ends as by Ctrl-C.
        usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            confirmation.run(asked)
        except KeyboardInterrupt:
            self._progress.say(
                f"stopped; kdsearch confirm {running.name} goes on, and repeats nothing"
            )
            raise
        finally:
            signal.signal(signal.SIGTERM, usual)
            self._record = confirmation.record.model_copy(update={"state": self._state_of_trials})

    @property
    def _state_of_trials(self) -> Literal["finished", "interrupted"]:
        """The search's, when nothing runs any more: a spent budget ends it as trials do."""
        ended = sum(not trial.unfinished for trial in self._record.trials)
        enough = ended >= self._plan.experiment.search.trials or self._record.ended
        return "finished" if enough else "interrupted"

    def _earlier_trials(self) -> list[TrialRecord]:
        """The trials of the searches to start from: those on the same data."""
        trials: list[TrialRecord] = []
        for name in self._plan.experiment.search.warm_start:
            try:
                earlier = read_record(self._storage, name)
            except ValueError as error:  # it was there when this search was planned
                self._progress.say(f"warm start: {error}")
                continue
            trials += earlier.trials
        return trials


@contextmanager
def _outlasting_full_memory() -> Iterator[None]:
    """Lets Tune take a trial that Ray ended, because its machine ran out of memory, for one whose
    process died, and try it again. By itself it would end the search."""

    def told(usual: Callable[..., None]) -> Callable[..., None]:
        def tell(manager: RayActorManager, **arguments: Any) -> None:
            if isinstance(arguments["exception"], OutOfMemoryError):
                message = "the machine ran out of memory; with more resources.cpus fewer trials run"
                arguments["exception"] = RayActorError(error_msg=message)
            usual(manager, **arguments)

        return tell

    names = ("_actor_task_failed", "_actor_start_failed")
    handlers: dict[str, Any] = {name: told(getattr(RayActorManager, name)) for name in names}
    with patch.multiple(RayActorManager, **handlers):
        yield


def _reason(trial: Any) -> str:
    """Why a trial failed last."""
    return reason_of(Path(trial.error_file).read_text()) if trial.error_file else "unknown"


def reason_of(traceback: str) -> str:
    """The error that a traceback ends with, without the name of its class."""
    lines = traceback.strip().splitlines()
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): .", line)]
    return named[-1].partition(": ")[2] if named else lines[-1]


@contextmanager
def _stopping_on_ctrl_c(progress: Progress) -> Iterator[None]:
    """The first Ctrl-C ends the search cleanly and says so at once, the second as usual. So does
    SIGTERM, by which a cluster stops a job.

    Tune's own handler only writes to its log; it is switched off, and told through SIGUSR1.
    """
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, usual[signal.Signals(number)])
        progress.say("stopping; Ctrl-C again ends at once")
        os.kill(os.getpid(), signal.SIGUSR1)

    for number in usual:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _folder_of(trial: Any) -> str:
    """A trial's folder; Tune's own name repeats all settings, too long for some file systems."""
    return f"trial_{trial.config[NUMBER]:03d}"


class _RecordingCallback(tune.Callback):
    """Keeps the search's record true, and tells MLflow and the display."""

    def __init__(
        self,
        record: SearchRecord,
        storage: Storage,
        tracker: Tracker,
        reporter: Reporter,
        progress: Progress,
    ) -> None:
        self.record = record
        self._storage, self._tracker, self._progress = storage, tracker, progress
        self._reporter = reporter
        self._written = self._counted = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks beside the search; threads and consoles stay behind.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._known(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        known = self._known(trial)
        if result[SAVED]:
            folder = trial_folder(self.record.name, known.number)
            known = known.model_copy(update={"checkpoint": folder})
        if REASON in result:
            self._change(known.model_copy(update={"reason": result[REASON]}))
            return
        report = EpochReport(**{name: result[name] for name in EpochReport.__annotations__})
        if report.epoch <= known.epochs_done:  # told once more, by a trial that was started again
            self._change(known)
            return
        changes: dict[str, Any] = {
            "accuracies": (*known.accuracies, report.heldout_accuracy),
            "epochs_done": report.epoch,
            "heldout_accuracy": report.best_heldout_accuracy,
            "best_epoch": report.best_epoch,
            "parts": report.parts,
            "train_seconds": known.train_seconds + report.epoch_seconds,
            "views_computed": known.views_computed + (report.teacher == "computed"),
            "views_cached": known.views_cached + (report.teacher == "cached"),
            "teacher_seconds_saved": known.teacher_seconds_saved + report.teacher_seconds_saved,
        }
        if report.best_epoch == report.epoch:
            changes["heldout_loss"] = report.heldout_loss
        known = known.model_copy(update=changes)
        self._change(known)
        self._tracker.log_epoch(known.number, report, self.record.gain(known))
        self._progress.update(self.record)
        if time.monotonic() - self._written > _EPOCHS_WRITTEN_EVERY_SECONDS:
            self._write()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        known = self._known(trial)
        state = "finished" if known.epochs_done == known.epochs else "stopped"
        if known.reason:
            state = "failed"
        self._end(known.model_copy(update={"state": state}))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        tries = f" ({trial.num_failures} tries)" if trial.num_failures > 1 else ""
        changes = {"state": "failed", "reason": _reason(trial) + tries}
        self._end(self._known(trial).model_copy(update=changes))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config[NUMBER]
        self._progress.say(f"trial {number} goes on from its checkpoint, after: {_reason(trial)}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._count_costs()
        self._reporter.update(self.record)
        if time.monotonic() - self._written > HEARTBEAT.total_seconds():
            self._write()

    def _count_costs(self) -> None:
        """Adds the time since the last count, and ends the search when a budget is spent."""
        now = time.monotonic()
        seconds, self._counted = now - self._counted, now
        resources = self.record.experiment.resources
        running = sum(trial.state == "running" for trial in self.record.trials)
        self.record = self.record.model_copy(
            update={
                "seconds": self.record.seconds + seconds,
                "device_seconds": self.record.device_seconds
                + seconds * running * (resources.gpus or resources.cpus),
            }
        )
        spent = self.record.spent_budget
        if spent and not self.record.ended:
            self.record = self.record.model_copy(update={"ended": spent})
            os.kill(os.getpid(), signal.SIGUSR1)  # Tune ends its loop at this signal

    def _known(self, trial: Any) -> TrialRecord:
        """A trial's record; its first appearance in this session opens one, and a run in MLflow.

        Trials do not always start in the order of their numbers.
        """
        point = dict(trial.config)
        number = point.pop(NUMBER)
        known = next((each for each in self.record.trials if each.number == number), None)
        if known is not None and known.state != "interrupted":
            return known
        experiment = self.record.experiment
        config = trial_config(experiment, point)
        opened = known or TrialRecord(
            number=number,
            student=config.student,
            point=point,
            objective=" + ".join(map(str, config.objective)) or CONTROL,
            state="running",
            epochs=experiment.training.epochs,
        )
        opened = opened.model_copy(update={"state": "running"})
        self._change(opened)
        self._tracker.start_trial(
            opened,
            self.record.method_names(opened),
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
        if ended.is_control:
            self._tracker.log_gains(self.record, ended.student)
        self._tracker.log_cost(self.record)
        self._tracker.log_view(self.record)
        self._progress.trial_ended(ended, self.record)
        self._write()

    def _write(self) -> None:
        """Writes the record; a storage that is away gets it at the next event or heartbeat."""
        self._written = time.monotonic()
        self.record = self.record.model_copy(update=self._tracker.ids)
        try:
            self.record = write_record(self._storage, self.record)
        except OSError as error:
            print(f"the record could not be written: {error}", file=sys.stderr)
        self._progress.update(self.record)
