"""What happens to the trials: told to the record, to MLflow and to the display."""

import re
import sys
import time
from typing import Any

from ray import tune

from kdcore.training.report import EpochReport
from search.cluster.ray_private import failures_of
from search.errors import LostSearchError
from search.experiment.schema import CONTROL
from search.experiment.space.point import NUMBER
from search.experiment.space.trial_config import trial_config
from search.record.files import write_record
from search.record.owner import HEARTBEAT, Owner
from search.record.record import REASON, SAVED, SearchRecord, TrialRecord
from search.record.storage import Storage
from search.record.trial_checkpoints import trial_folder
from search.report.reporter import Reporter
from search.session.interruption import StopRequest
from search.session.live_display import LiveDisplay
from search.tracking.tracker import Tracker

# The record is also written when a trial starts or ends; between, epochs need not be shown at once.
_EPOCHS_WRITTEN_EVERY_SECONDS = 5.0


def reason_of(traceback: str) -> str:
    """The error that a traceback ends with, without the name of its class."""
    lines = traceback.strip().splitlines() or ["unknown"]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): .", line)]
    return named[-1].partition(": ")[2] if named else lines[-1]


class Recorder(tune.Callback):
    """Keeps the search's record up to date, and MLflow and the display with it.

    Attributes:
        record: of the search.
        lost: says that another process has taken the search over; then nothing is told any more.
    """

    def __init__(
        self,
        record: SearchRecord,
        storage: Storage,
        owner: Owner,
        tracker: Tracker,
        reporter: Reporter,
        progress: LiveDisplay,
        stop: StopRequest,
    ) -> None:
        self.record = record
        self.lost: LostSearchError | None = None
        self._owner = owner
        self._storage, self._tracker, self._progress = storage, tracker, progress
        self._reporter, self._stop = reporter, stop
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
        failures, traceback = failures_of(trial)
        tries = f" ({failures} tries)" if failures > 1 else ""
        changes = {"state": "failed", "reason": reason_of(traceback) + tries}
        self._end(self._known(trial).model_copy(update=changes))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config[NUMBER]
        _, traceback = failures_of(trial)
        self._progress.say(
            f"trial {number} continues from its checkpoint, after: {reason_of(traceback)}"
        )

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        try:
            self._owner.check_after_silence()
        except LostSearchError as error:
            self._lose(error)
        except OSError:
            pass
        if self.lost is not None:
            return
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
            self._stop.made = True

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
        over = sum(not trial.unfinished for trial in self.record.trials)
        self._tracker.log_cost(self.record, over)
        self._tracker.log_runs_table(self.record)
        self._progress.trial_ended(ended, self.record)
        self._write()

    def _write(self) -> None:
        """Writes the record; a storage that is away gets it at the next event or heartbeat."""
        self._written = time.monotonic()
        self.record = self.record.model_copy(update=self._tracker.ids)
        try:
            self.record = write_record(self._storage, self.record, self._owner)
        except LostSearchError as error:
            self._lose(error)
        except OSError as error:
            print(f"the record could not be written: {error}", file=sys.stderr)
        self._progress.update(self.record)

    def _lose(self, error: LostSearchError) -> None:
        """Ends this session of a search that another process has taken over."""
        self.lost, self._stop.made = error, True
        self._tracker.abandon()
