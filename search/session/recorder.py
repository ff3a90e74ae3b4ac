"""What happens to the trials: told to the record, to MLflow and to the display."""

import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray import tune

from kdcore.training.report import EpochReport
from search.cluster.machines import machine_types
from search.cluster.ray_private import failures_of
from search.errors import LostSearchError
from search.experiment.prices import Prices
from search.experiment.schema import CONTROL
from search.experiment.space.point import NUMBER
from search.experiment.space.trial_config import trial_config
from search.leaderboard.teacher_lead import teacher_lead, what_to_do
from search.record.costs import cost_of
from search.record.decisions import Proposal, Verdict
from search.record.live_record import LiveRecord
from search.record.log import RecordLog
from search.record.owner import HEARTBEAT, Owner
from search.record.record import REASON, REPORT, SAVED, TrialRecord
from search.record.trial_checkpoints import trial_folder
from search.report.reporter import Reporter
from search.session.interruption import StopRequest
from search.session.live_display import LiveDisplay
from search.tracking.tracker import Tracker, teacher_param

# An epoch need not be in the record at once, as a trial's start and end.
_EPOCH_SECONDS = 5.0


def reason_of(traceback: str) -> str:
    """The error that a traceback ends with, without the name of its class."""
    lines = traceback.strip().splitlines() or ["unknown"]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): .", line)]
    return named[-1].partition(": ")[2] if named else lines[-1]


class Recorder(tune.Callback):
    """Keeps the search's record up to date, and MLflow and the display with it.

    Args:
        search: its record.
        log: where that is written.
        owner: this process as the search's.
        tracker: gets each event.
        reporter: writes the report now and then.
        progress: shows how far the search is.
        stop: ends it.
        proposals: by number, where the points of new trials came from.
        verdicts: by number, what early stopping has just decided; each is taken out of there.

    Attributes:
        lost: says that another process has taken the search over; then nothing is told any more.
    """

    def __init__(
        self,
        search: LiveRecord,
        log: RecordLog,
        owner: Owner,
        tracker: Tracker,
        reporter: Reporter,
        progress: LiveDisplay,
        stop: StopRequest,
        *,
        proposals: Mapping[int, Proposal] | None = None,
        verdicts: dict[int, Verdict] | None = None,
    ) -> None:
        self.lost: LostSearchError | None = None
        self._search, self._log, self._owner = search, log, owner
        self._tracker, self._progress = tracker, progress
        self._reporter, self._stop = reporter, stop
        self._proposals = {} if proposals is None else proposals
        self._verdicts = {} if verdicts is None else verdicts
        self._counted = time.monotonic()
        self._due = self._counted  # when the record is to be written
        self._told: dict[str, str] = {}  # by student, what was said of its teacher
        self._unpriced: set[str] = set()  # types of machines of which that was said

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
            folder = trial_folder(self._search.head.name, known.number)
            known = known.model_copy(update={"checkpoint": folder})
        verdict = self._verdicts.pop(known.number, None)
        # Epochs that are told once more are judged again, by what is known now.
        last = known.verdicts[-1].epoch if known.verdicts else 0
        if verdict is not None and (verdict.stops or verdict.epoch > last):
            known = known.model_copy(update={"verdicts": (*known.verdicts, verdict)})
        if REASON in result:
            self._search.put(known.model_copy(update={"reason": result[REASON]}))
            return
        report: EpochReport = result[REPORT]
        if report.epoch <= known.epochs_done:  # told once more, by a trial that was started again
            self._search.put(known)
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
            "seconds_by_part": dict(
                Counter(known.seconds_by_part) + Counter(report.seconds_by_part)
            ),
            "teacher_seconds_saved": known.teacher_seconds_saved + report.teacher_seconds_saved,
        }
        if report.best_epoch == report.epoch:
            changes["heldout_loss"] = report.heldout_loss
            changes["heldout_balanced_accuracy"] = report.heldout_balanced_accuracy
            changes["heldout_top5"] = report.heldout_top5
        if (score := report.score_by(self._search.head.experiment.search.metric)) is not None:
            changes["scores"] = (*known.scores, score)
        known = known.model_copy(update=changes)
        self._search.put(known)
        self._tracker.log_epoch(known.number, report, self._search.gain(known))
        self._write_within(_EPOCH_SECONDS)

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
        self._reporter.update(self._search)
        if time.monotonic() >= self._due:
            self._write()

    def _count_costs(self) -> None:
        """Adds the time since the last count, and ends the search when a budget is spent."""
        now = time.monotonic()
        seconds, self._counted = now - self._counted, now
        head = self._search.head
        resources = head.experiment.resources
        devices = len(self._search.running) * resources.devices
        self._search.update(
            seconds=head.seconds + seconds,
            device_seconds=head.device_seconds + seconds * devices,
        )
        if (prices := head.experiment.prices) is not None:
            machines = self._paid_machines(prices) if prices.machine_hour else ()
            an_hour = prices.per_hour(devices, resources.gpus, machines)
            self._search.update(spent=head.spent + seconds / 3600 * an_hour)
        spent = self._search.head.spent_budget
        if spent and not head.ended:
            self._search.update(ended=spent)
            self._stop.made = True

    def _paid_machines(self, prices: Prices) -> list[str]:
        """The types of the machines that are there; says of one without a price how it counts."""
        there = machine_types()
        for unpriced in sorted(set(there) - prices.machine_hour.keys() - self._unpriced):
            self._unpriced.add(unpriced)
            self._progress.say(
                f"caution: prices.machine_hour has no price for a machine of type {unpriced!r} "
                f"that has come; it counts as the dearest"
            )
        return there

    def _known(self, trial: Any) -> TrialRecord:
        """A trial's record; its first appearance in this session opens one, and a run in MLflow.

        Trials do not always start in the order of their numbers.
        """
        point = dict(trial.config)
        number = point.pop(NUMBER)
        known = self._search.trials.get(number)
        if known is not None and known.state != "interrupted":
            return known
        head = self._search.head
        experiment = head.experiment
        config = trial_config(experiment, point)
        opened = known or TrialRecord(
            number=number,
            student=config.student.label,
            point=point,
            objective=" + ".join(map(str, config.objective)) or CONTROL,
            state="running",
            epochs=experiment.training.epochs + config.epochs_on_top,
            epochs_on_top=config.epochs_on_top,
            proposal=self._proposals.get(number),
        )
        opened = opened.model_copy(update={"state": "running"})
        self._search.put(opened)
        self._tracker.start_trial(
            opened,
            head.method_names(opened),
            {
                "student": config.student.label,
                "teacher": teacher_param(head, opened),
                "data": experiment.data.name,
                "learning_rate": str(config.training.learning_rate),
                "epochs": str(opened.epochs),
                "seed": str(config.seed),
            },
            cost_of(head, opened),
        )
        self._write_within(self._log.pause)
        return opened

    def _end(self, ended: TrialRecord) -> None:
        self._search.put(ended)
        self._tracker.end_trial(ended)
        if ended.is_control:
            self._tracker.log_gains(self._search.record, ended.student)
            self._judge_teacher(ended)
        self._tracker.log_cost(self._search.head, self._search.ended)
        self._tracker.log_runs_table(self._search)
        self._progress.trial_ended(ended, self._search)
        self._write_within(self._log.pause)

    def _judge_teacher(self, control: TrialRecord) -> None:
        """Says that no teacher leads a student, and ends the search where one must."""
        lead = teacher_lead(self._search.record, control.student)
        if control.state != "finished" or lead is None or not lead.is_missing:
            return
        experiment = self._search.head.experiment
        caution = f"caution: {lead}. {what_to_do(experiment, lead.teacher)}"
        if self._told.get(control.student) != caution:  # a worse control says nothing new
            self._told[control.student] = caution
            self._progress.say(caution)
        if experiment.search.teacher_must_lead and not self._search.head.ended:
            self._search.update(ended=f"{lead}, and search.teacher_must_lead is true")
            self._stop.made = True

    def _write_within(self, seconds: float) -> None:
        self._due = min(self._due, time.monotonic() + seconds)

    def _write(self) -> None:
        """Writes the record; a storage that is away gets it later."""
        self._search.update(**self._tracker.ids)
        self._due = time.monotonic() + HEARTBEAT.total_seconds()
        try:
            self._log.write(self._search)
        except LostSearchError as error:
            self._lose(error)
        except OSError as error:
            print(f"the record could not be written: {error}", file=sys.stderr)
            self._write_within(_EPOCH_SECONDS)

    def _lose(self, error: LostSearchError) -> None:
        """Ends this session of a search that another process has taken over."""
        self.lost, self._stop.made = error, True
        self._tracker.abandon()
