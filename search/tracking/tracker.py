"""What a search logs to MLflow: one experiment a task, one run a search, one child run a trial."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kdcore.data.image_data import ImageData
from kdcore.networks.cost import NetworkCost
from kdcore.training.report import EpochReport
from search.experiment.schema import CONTROL
from search.experiment.space.point import TEACHER, option_in_words, plain_name
from search.leaderboard.ranking import further_columns
from search.record.live_record import LiveRecord
from search.record.owner import Owner
from search.record.record import (
    METRIC,
    ConfirmationRun,
    Confirmed,
    SearchRecord,
    State,
    TrialRecord,
)
from search.record.wording import METRIC_HEADS
from search.tracking.dataset import describe_dataset
from search.tracking.delivery import Order
from search.tracking.delivery_queue import DeliveryQueue, command_for
from search.tracking.runs_table import runs_table

# MLflow's own words for how a run ended. KILLED tells a trial that was stopped from one that
# finished.
_STATUS: Mapping[State, str] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
_CLOSE_SECONDS = 60.0
_RUNS_TABLE_SECONDS = 10.0
_FEWEST_DECIMALS = 4
_LONGEST_REASON = 5000  # characters; MLflow's limit for a tag is 8,000


class Tracker:
    """Queues what a search logs; every call returns at once.

    MLflow's pages show numbers with all their digits, so accuracies have as many decimals as tell
    the results on the largest split apart, but at least four.

    A process of its own delivers the entries to MLflow in order, from a queue on disk. While the
    server is away they wait, if need be for a later search's. Entries that MLflow refuses are
    logged and counted; neither ends a search.

    Args:
        uri: the tracking store or server.
        artifacts: the folder for artifacts of a local store; a server has its own place for them.
        queue_file: the file of the entries that MLflow does not have yet.
        record: the search.
        data: the images of its trials.
        owner: this process as the search's; once another one is, nothing more is delivered.

    Attributes:
        is_abandoned: whether it takes nothing any more.

    Raises:
        StorageError: the queue's folder cannot be written to.
    """

    def __init__(
        self,
        uri: str,
        artifacts: Path,
        queue_file: Path,
        record: SearchRecord,
        data: ImageData,
        owner: Owner | None = None,
    ) -> None:
        self._search, self._stopping = record.name, record.experiment.search.stopping
        self.is_abandoned = False
        self._dataset = describe_dataset(data)
        images = max(len(data.heldout), len(data.test))
        self._decimals = max(_FEWEST_DECIMALS, len(str(images - 1)))
        further = {f"heldout_{name}" for name in METRIC_HEADS}
        self._unshown = further - further_columns(record).keys()
        self._runs_table: tuple[str, str] | None = None
        self._runs_table_due = 0.0
        self._compared: dict[str, float] = {}
        # Names sort like numbers only if all have the same number of digits.
        self._digits = max(3, len(str(record.experiment.search.trials - 1)))
        order = Order(
            queue=queue_file,
            uri=uri,
            artifacts=artifacts,
            task=record.experiment.name,
            search=record.name,
            owner=None if owner is None else (owner.place, owner.number),
        )
        self._queue = DeliveryQueue(queue_file, command_for(order))

    @property
    def ids(self) -> Mapping[str, str]:
        """MLflow's ids of experiment and run, as fields of the search's record, once known."""
        return self._queue.progress.ids

    def open(self) -> None:
        """Starts to deliver, first what an earlier process left in the queue."""
        self._queue.start()

    def start_search(
        self, record: SearchRecord, experiment_yaml: str, facts: Mapping[str, str]
    ) -> None:
        """Opens the search's run.

        Args:
            record: the search.
            experiment_yaml: the experiment with all defaults filled in.
            facts: further parameters of the run, like package versions.
        """
        params = {
            "student": ", ".join(record.experiment.students),
            "teacher": ", ".join(record.experiment.teachers),
            "data": record.experiment.data.name,
            "trials": str(record.experiment.search.trials),
            "epochs": str(record.experiment.training.epochs),
            **facts,
        }
        self._put(
            "start_search", params=params, experiment_yaml=experiment_yaml, dataset=self._dataset
        )
        self._save_runs_table(record)

    def log_teacher(
        self,
        label: str,
        reports: list[EpochReport],
        metrics: Mapping[str, float],
        *,
        alone: bool = True,
    ) -> None:
        """Logs a teacher's training as a run of its own, and its scores on the search's run; those
        of one of several on its own run.

        Args:
            label: the teacher's.
            reports: its epochs; empty if it was trained before.
            metrics: its scores.
            alone: whether it is the only one.
        """
        entries = [self._rounded(asdict(report)) for report in reports]
        key = {} if alone else {"key": label}
        self._put("teacher", backbone=label, reports=entries, metrics=self._rounded(metrics), **key)

    def log_best_teacher(self, metrics: Mapping[str, float]) -> None:
        """Logs the scores of the best of several teachers on the search's run."""
        self._put("teacher", backbone="", reports=[], metrics=self._rounded(metrics))

    def start_trial(
        self, trial: TrialRecord, words: str, params: Mapping[str, str], cost: NetworkCost | None
    ) -> None:
        """Opens a trial's run, or opens it again.

        Args:
            trial: the trial.
            words: what the run's name says after the trial's number.
            params: the run's parameters, in addition to the trial's settings.
            cost: what the student costs, if it was measured.
        """
        settings = {plain_name(key): option_in_words(value) for key, value in trial.point.items()}
        costs = {}
        if cost is not None:
            costs = {
                "parameters": float(cost.parameters),
                "multiply_adds": float(cost.multiply_adds),
                "latency_ms": round(cost.latency_ms, 4),
            }
        self._put(
            "start_trial",
            number=trial.number,
            name=f"{trial.number:0{self._digits}d} {words}",
            params={"objective": trial.objective, **settings, **params},
            costs=costs,
            dataset=self._dataset,
        )

    def log_epoch(self, number: int, report: EpochReport, gain: float | None) -> None:
        """Logs an epoch of a trial, with the trial's gain over the control so far."""
        values = asdict(report) if gain is None else asdict(report) | {"gain": gain}
        self._put("epoch", number=number, report=self._rounded(values))

    def log_gains(self, record: SearchRecord, student: str) -> None:
        """Logs the gains of a student's trials again, after one of its controls has ended.

        Takes time for each trial only if this control is now the one that they are compared with.
        """
        control = record.control_of(student)
        score = control.score if control is not None else None
        if score is None or score == self._compared.get(student):
            return
        self._compared[student] = score
        gains = [
            (trial.number, trial.epochs_done, self._rounded({"gain": gain}))
            for trial in record.trials
            if trial.student == student and (gain := record.gain(trial)) is not None
        ]
        self._put("gains", gains=gains)

    def end_trial(self, trial: TrialRecord) -> None:
        """Closes a trial's run with the trial's state."""
        tags: dict[str, str] = {"state": trial.state}
        if trial.state == "stopped":
            tags["kdsearch.stop"] = f"{self._stopping}@epoch{trial.epochs_done}"
        if trial.parts > 1:
            tags["kdsearch.parts"] = str(trial.parts)
        if trial.reason:
            tags["kdsearch.reason"] = trial.reason[:_LONGEST_REASON]
        student: dict[str, Any] = {}
        known = trial.checkpoint is not None and trial.heldout_accuracy is not None
        if trial.state == "finished" and known:
            taught = {TEACHER: trial.point[TEACHER]} if TEACHER in trial.point else {}
            student = {
                "name": trial.student,
                "params": {"objective": trial.objective, **taught},
                "tags": {"kdsearch.search": self._search, "kdsearch.checkpoint": trial.checkpoint},
                "step": trial.best_epoch,
                "metrics": self._rounded({METRIC: trial.heldout_accuracy, **_score("", trial)}),
            }
        self._put(
            "end_trial",
            number=trial.number,
            tags=tags,
            status=_STATUS[trial.state],
            student=student,
        )

    def log_cost(self, record: SearchRecord, ended: int) -> None:
        """Logs what the search has cost when so many trials have ended, which is the step."""
        self._put("cost", costs=_costs(record), step=ended)

    def log_runs_table(self, search: LiveRecord) -> None:
        """Saves the leaderboard's runs table if its columns, which follow the leaders, changed.

        May be called for every trial: the leaders are looked for every ten seconds at most, and
        when the search ends.
        """
        if time.monotonic() >= self._runs_table_due:
            self._save_runs_table(search.record)

    def _save_runs_table(self, record: SearchRecord) -> None:
        table = runs_table(record)
        self._runs_table_due = time.monotonic() + _RUNS_TABLE_SECONDS
        if table != self._runs_table:
            self._runs_table = table
            self._put("view", key=table[0], value=table[1])

    def log_report(self, folder: Path) -> None:
        """Shows a report on the search's page: `summary.md` and the pictures as its description,
        all files as artifacts. The files are read when they are delivered."""
        self._put("report", folder=str(folder))

    def log_confirmation(
        self,
        key: str,
        words: str,
        trial: int | None,
        params: Mapping[str, str],
        reports: list[EpochReport],
        run: ConfirmationRun,
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Logs a whole run of a confirmation or a reproduction.

        Args:
            key: names the run within the search.
            words: what the run's name says before the seed.
            trial: the number of the trial that is confirmed, if it is one.
            params: the run's parameters.
            reports: its epochs.
            run: how it ended.
            tags: of the run, beside its state.
        """
        tags = {**tags, "state": "failed" if run.reason else "finished"}
        if run.reason:
            tags["kdsearch.reason"] = run.reason[:_LONGEST_REASON]
        if trial is not None:
            tags["kdsearch.trial"] = str(trial)
        accuracy = run.test_accuracy
        score = {} if run.test_score is None else {"test_score": run.test_score}
        self._put(
            "confirmation",
            key=key,
            name=f"{words}, seed {run.seed}",
            params=dict(params),
            reports=[self._rounded(asdict(report)) for report in reports],
            metrics={} if accuracy is None else self._rounded({"test_accuracy": accuracy, **score}),
            tags=tags,
        )

    def end_search(self, record: SearchRecord) -> None:
        """Closes the search's run with the accuracy of the best trial and of its control, beside
        what else is ranked by, and saves the runs table."""
        self._save_runs_table(record)
        done = [t for t in record.trials if t.state == "finished" and t.heldout_accuracy]
        best = max(done, key=lambda trial: trial.score or 0.0, default=None)
        metrics: dict[str, float] = {}
        if best is not None:
            metrics |= {METRIC: best.heldout_accuracy or 0.0, **_score("", best)}
            control = record.control_of(best.student)
            if control is not None and control.heldout_accuracy is not None:
                metrics |= {"control_heldout_accuracy": control.heldout_accuracy}
                metrics |= _score("control_", control)
        tags = {"state": record.state, "kdsearch.ended": record.ended}
        status = "FINISHED" if record.state == "finished" else "KILLED"
        self._put("end_search", metrics=self._rounded(metrics), tags=tags, status=status)

    def abandon(self) -> None:
        """Delivers nothing more: another process logs this search."""
        if not self.is_abandoned:
            self.is_abandoned = True
            self._queue.close(0.0)

    def close(self) -> int:
        """Waits up to a minute for MLflow; returns how many entries it does not have."""
        return self._queue.close(_CLOSE_SECONDS) + self._queue.progress.failures

    def _rounded(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What a table shows, with accuracies and their differences as MLflow's pages are to
        show them."""
        return {
            name: round(value, self._decimals)
            if isinstance(value, float) and name.endswith(("accuracy", "gain", "top5", "score"))
            else value
            for name, value in metrics.items()
            if name not in self._unshown
        }

    def _put(self, call: str, **arguments: Any) -> None:
        """Queues an entry. Queues outlive a version of this package: see `MlflowWriter`."""
        if self.is_abandoned:
            return
        self._queue.put({"call": call, "time": int(time.time() * 1000), "arguments": arguments})


def teacher_param(record: SearchRecord, student: TrialRecord | Confirmed) -> str:
    """The parameter of a run that names its teacher; of a control the only teacher, or `none`."""
    teachers = record.experiment.teachers
    return record.teacher_of(student) or (CONTROL if len(teachers) > 1 else teachers[0])


def _score(prefix: str, trial: TrialRecord) -> dict[str, float]:
    """What a trial is ranked by, as its epochs log it; empty where that is the accuracy."""
    return {f"{prefix}best_score": max(trial.scores)} if trial.scores else {}


def _costs(record: SearchRecord) -> dict[str, float]:
    device = "gpu" if record.experiment.resources.gpus else "cpu"
    spending, prices = record.spending, record.experiment.prices
    money = {} if prices is None else {f"cost_{prices.currency}": spending.money}
    return {"hours": spending.hours, f"{device}_hours": spending.device_hours, **money}
