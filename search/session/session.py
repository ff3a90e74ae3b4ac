"""One search on a connected Ray: the teachers, the trials, what is confirmed."""

import socket
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import ray
import yaml
from ray import tune
from ray.exceptions import RayError

from kdcore.teacher_cache.patience import patiently
from search.cluster.ray_private import retrying_lost_processes
from search.errors import KdsearchError, LostSearchError, SearchFailedError
from search.experiment.schema import Confirm
from search.experiment.space.point import NUMBER
from search.experiment.space.trial_config import epochs_on_top
from search.export.choice import candidates
from search.leaderboard.front import costs_of
from search.leaderboard.teacher_lead import broken_demand, teacher_caution
from search.record.decisions import Verdict
from search.record.files import read_record
from search.record.live_record import LiveRecord
from search.record.log import RecordLog
from search.record.owner import Owner
from search.record.record import SearchRecord, TrialRecord
from search.record.storage import Storage, local_home, search_storage
from search.record.wording import as_typed
from search.report.reporter import Reporter
from search.session.interruption import StopRequest, sigterm_as_ctrl_c, stopping_cleanly
from search.session.live_display import LiveDisplay
from search.session.preflight import Plan, Prepared
from search.session.preparation import measure_students
from search.session.recorder import Recorder
from search.session.retraining.contenders import confirmation
from search.session.retraining.retraining import Asked, Retraining
from search.session.sampler import OptunaSampler
from search.session.teachers import prepare_teachers
from search.session.trial import run_trial
from search.session.winner import classes_of
from search.session.worker_group import bundles
from search.stopping.named import rule_of
from search.stopping.scheduler import ControlSparing, Fifo
from search.tracking.tracker import Tracker

# How often a trial is restarted after its process or machine died, or it raised an error.
_RETRIES = 3
_PACKAGES = ("kdsearch", "torch", "ray", "optuna", "mlflow", "pyarrow")


class Session:
    """One search on a connected Ray.

    Args:
        prepared: what is searched, or trained again.
        storage: where the search is kept.
        record: of the search, as an earlier session left it.
        owner: this process as the search's.
        progress: shows how far it is.
        log: where libraries write, for messages.
        parallel: number of trials at a time.
    """

    def __init__(
        self,
        prepared: Prepared,
        storage: Storage,
        record: SearchRecord,
        owner: Owner,
        progress: LiveDisplay,
        log: Path,
        parallel: int,
    ) -> None:
        self._plan, self._storage, self._progress, self._log = prepared, storage, progress, log
        self._trainable: Callable[..., None] = run_trial
        # A warm process saves its start and the import of torch; run_trial gives its GPU memory
        # back. One that failed is not used again.
        # Code of a user's own may hang, and goes with its process.
        self._reuse_actors = not prepared.experiment.plugins
        self._search = LiveRecord(record)
        self._search.update(
            host=socket.gethostname(),
            heldout_images=len(prepared.data.heldout),
            unequal_classes=prepared.data.has_unequal_classes,
        )
        self._record_log = RecordLog(storage, record.name, owner)
        home = local_home(storage)
        self._folder = home / "searches" / record.name
        self._tracker = Tracker(
            record.tracking_uri,
            home / "mlartifacts",
            self._folder / "mlflow.jsonl",
            self._search.head,
            prepared.data,
            owner,
        )
        report = self._folder / "report"
        self._reporter = Reporter(report, lambda: self._tracker.log_report(report))
        self._parallel, self._owner = parallel, owner

    def run(
        self,
        retrain_only: Asked | None = None,
        ended: Callable[[SearchRecord], None] = lambda record: None,
    ) -> SearchRecord:
        """Runs the trials, and what the experiment wants confirmed; or only trains again.

        Args:
            retrain_only: what is trained again; none: a search.
            ended: called after each such run.

        Raises:
            SearchFailedError: a teacher failed, or a student could not be measured.
            LostSearchError: another process has taken the search over.
        """
        experiment = self._plan.experiment
        self._write()
        resolved = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
        search_storage(self._storage, self._search.head.name).write(
            "experiment.yaml", resolved.encode()
        )
        self._tracker.open()
        self._tracker.start_search(
            self._search.record,
            resolved,
            {
                "seed": str(experiment.seed),
                "sampler_seed": str(experiment.search.seed),
                **{f"version_{package}": version(package) for package in _PACKAGES},
            },
        )
        try:
            for network, words in self._plan.starts.items():
                self._progress.say(f"{network}: {words}")
            prepare_teachers(
                self._plan,
                self._search,
                self._storage,
                self._tracker,
                self._progress,
                self._write,
            )
            self._measure_students()
            if retrain_only is not None:
                self._retrain(retrain_only, ended)
            else:
                self._run_trials()
                finished = self._search.head.state == "finished"
                if finished and experiment.confirm and not broken_demand(self._search.record):
                    self._confirm(experiment.confirm)
            self._measure_winner()
        except LostSearchError:
            self._tracker.abandon()
            raise
        except KeyboardInterrupt:
            self._search.interrupt()
            if retrain_only is not None:
                if retrain_only.by == "confirm":
                    self._search.update(state=self._state_of_trials)
                raise
        except BaseException:
            self._search.interrupt()
            self._search.update(state="failed")
            raise
        finally:
            if not self._tracker.is_abandoned:
                self._finish()
        return self._search.record

    def _write(self) -> None:
        self._record_log.write(self._search)

    def _finish(self) -> None:
        """Tells record, MLflow and report how the search ended."""
        for trial in self._search.trials.values():
            if trial.state == "interrupted":  # by Ctrl-C or a crash: no callback told of it
                self._tracker.end_trial(trial)
        self._tracker.end_search(self._search.record)
        self._reporter.finish(self._search.record)
        lost = self._tracker.close()
        self._search.update(**self._tracker.ids)
        patiently(lambda: self._record_log.write(self._search, whole=True))
        if lost:
            self._progress.say(
                f"MLflow missed {lost} of this search's entries; the leaderboard has them all. "
                f"kdsearch resume {self._search.head.name} brings them to it; "
                f"see {as_typed(self._log)}"
            )

    def _measure_students(self) -> None:
        """Measures with a trial's resources, while nothing else runs, what the students cost, and
        how the networks compute; what is in the record stays."""
        experiment = self._plan.experiment
        known = self._search.head.executions
        if known and self._search.head.student_costs.keys() >= set(experiment.students):
            return
        task = ray.remote(measure_students).options(
            num_cpus=experiment.resources.cpus, num_gpus=experiment.resources.gpus
        )
        try:
            costs, executions = ray.get(
                task.remote(experiment.model_dump_json(), self._storage.uri)
            )
        except RayError as error:
            cause = getattr(error, "cause", error)
            raise SearchFailedError(f"a student could not be measured: {cause}") from None
        costs |= self._search.head.student_costs
        self._search.update(student_costs=costs, executions=known or executions)

    def _run_trials(self) -> None:
        assert isinstance(self._plan, Plan)
        experiment = self._plan.experiment
        resources, search = experiment.resources, experiment.search
        epochs, on_top = experiment.training.epochs, partial(epochs_on_top, experiment)
        patiently(self._write)
        recorded = self._search.record.trials
        remaining = search.trials - self._search.ended
        if remaining <= 0:
            self._search.update(state="finished")
            return
        scheduler, verdicts = Fifo(), dict[int, Verdict]()
        if search.rule is not None:
            known = self._search.trials  # a trial is there before its first report
            rule = rule_of(search.rule, epochs=epochs, student_of=lambda n: known[n].student)
            for trial in recorded:
                rule.add_curve(trial.number, trial.curve, trial.epochs_on_top)
            scheduler = ControlSparing(
                rule, epochs=epochs, on_top=on_top, metric=search.metric, verdicts=verdicts
            )
        searcher = OptunaSampler(
            self._plan.space,
            trials=search.trials,
            parallel=self._parallel,
            epochs=epochs,
            seed=search.seed,
            recorded=recorded,
            earlier=self._earlier_trials(),
            on_top=on_top,
            sampler=search.sampler,
            grid_steps=search.grid_steps,
            costs=costs_of(self._search.head, search.cost) if search.goal == "pareto" else None,
        )
        request = StopRequest()
        callback = Recorder(
            self._search,
            self._record_log,
            self._owner,
            self._tracker,
            self._reporter,
            self._progress,
            request,
            proposals=searcher.proposals,
            verdicts=verdicts,
        )
        trainable = tune.with_resources(
            tune.with_parameters(
                self._trainable,
                experiment_json=experiment.model_dump_json(),
                storage_uri=self._storage.uri,
                search=self._search.head.name,
                executions=self._search.head.executions,
                session=self._owner.number,
            ),
            tune.PlacementGroupFactory(bundles(resources)),
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
                # when the storage is away. On the head of a cluster, searches of one Tune name
                # that begin in the same second would write into one folder.
                name=self._search.head.name,
                storage_path=str(self._folder / "tune"),
                callbacks=[callback],
                stop=request,
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                verbose=0,
                # The one for notebooks clears what was shown.
                progress_reporter=tune.CLIReporter(),
            ),
        )
        self._progress.search_started(self._search)
        if search.warm_start:
            self._progress.say(f"warm start: {searcher.adopted} trials of earlier searches fit")
        if caution := teacher_caution(self._search.record):  # of a search that is resumed
            self._progress.say(f"caution: {caution}")
        with stopping_cleanly(request, self._progress.say), retrying_lost_processes():
            tuner.fit()
        if callback.lost is not None:
            raise callback.lost
        # After Ctrl-C, and when a budget is spent, Tune returns as if all were done.
        if self._search.ended < search.trials:
            self._search.interrupt()
        if self._search.head.ended:
            self._progress.say(f"{self._search.head.ended}; the search ends with what it has")
        self._search.update(state=self._state_of_trials)

    def _confirm(self, asked: Confirm) -> None:
        chosen = confirmation(self._search.record, asked)
        if chosen.students:
            self._retrain(chosen)
        else:
            self._progress.say("no trial with a method has finished, so none is confirmed")

    def _measure_winner(self) -> None:
        """Has the best student measured by class for the report, where a search has come to its
        end; what goes wrong with it is said, and changes nothing else."""
        record = self._search.record
        picked = next(iter(candidates(record)), None)
        if picked is None or record.state != "finished" or record.reproduces:
            return
        known, found = record.by_class, None
        if known is not None and (known.checkpoint, known.epoch) == (
            picked.checkpoint,
            picked.best_epoch,
        ):
            return
        try:
            with sigterm_as_ctrl_c():
                found = classes_of(picked, record, self._storage, self._write)
        except (RayError, OSError) as error:
            cause = str(getattr(error, "cause", error)) or repr(error)
            self._progress.say(f"the report has no table of classes: {cause.splitlines()[0]}")
        except KeyboardInterrupt:
            self._progress.say("stopped; the report has no table of classes")
        self._search.update(by_class=found)

    def _retrain(
        self, asked: Asked, ended: Callable[[SearchRecord], None] = lambda record: None
    ) -> None:
        """Trains students again. A search is then in the state that its trials have left it in."""
        self._search.update(state="running")
        retraining = Retraining(
            self._search,
            self._record_log,
            self._storage,
            self._tracker,
            self._progress,
            self._parallel,
            ended,
        )
        try:
            with sigterm_as_ctrl_c():  # by which a cluster stops a job
                retraining.run(asked)
            if asked.by == "reproduce":
                self._search.update(state="finished")
        except KeyboardInterrupt:
            if asked.by == "confirm":
                name = self._search.head.name
                again = f"kdsearch confirm {name} continues, and repeats nothing"
                self._progress.say(f"stopped; {again}")
            raise
        finally:
            if asked.by == "confirm":
                self._search.update(state=self._state_of_trials)

    @property
    def _state_of_trials(self) -> Literal["finished", "interrupted"]:
        """The search's, when nothing runs any more: a spent budget ends it as trials do."""
        planned = self._plan.experiment.search.trials
        enough = self._search.ended >= planned or self._search.head.ended
        return "finished" if enough else "interrupted"

    def _earlier_trials(self) -> list[TrialRecord]:
        """The trials of the searches to start from: those on the same data."""
        trials: list[TrialRecord] = []
        for name in self._plan.experiment.search.warm_start:
            try:
                earlier = read_record(self._storage, name)
            except KdsearchError as error:  # it was there when this search was planned
                self._progress.say(f"warm start: {error}")
                continue
            trials += earlier.trials
        return trials


def _folder_of(trial: Any) -> str:
    """A trial's folder; Tune's own name repeats all settings, too long for some file systems."""
    return f"trial_{trial.config[NUMBER]:03d}"
