"""MLflow: one experiment a task, one run a search, one child run a trial.

Calls return at once; a thread makes them in order, from a queue on disk. A server that is away
gets them when it is back, also by a later process. What MLflow refuses is written to the log and
counted, and never ends a search.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunData,
    RunTag,
)
from mlflow.exceptions import MlflowException

from kdcore.data.image_data import ImageData
from kdcore.networks.cost import NetworkCost
from kdcore.training.report import EpochReport
from search.experiment.space.point import plain_name
from search.record.record import METRIC, ConfirmationRun, SearchRecord, State, TrialRecord
from search.report.summary import SUMMARY, TABLE
from search.tracking.dataset import dataset_of
from search.tracking.delivery_queue import DeliveryQueue
from search.tracking.runs_table import saved_view

# MLflow's own words for how a run ended. KILLED tells a trial that ASHA cut from one that finished.
_STATUS: Mapping[State, str] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
_CLOSE_SECONDS = 60.0
_METRICS_TOGETHER = 1000  # what MLflow takes in one request


class Tracker:
    """Logs a search to MLflow. Every run has tags that name its search, its role and its trial; by
    them it is found again, so that a search that goes on adds to the runs that are there.

    Args:
        uri: of the tracking store or server.
        artifacts: where a local store keeps artifacts; a server decides by itself.
        outbox: the file of the entries that MLflow did not get yet.
        record: of the search.
        data: that its trials learn from.

    Attributes:
        ids: MLflow's ids of experiment and search, as the search's record names them, once known.
    """

    def __init__(
        self, uri: str, artifacts: Path, outbox: Path, record: SearchRecord, data: ImageData
    ) -> None:
        self._uri, self._artifacts = uri, artifacts
        self._search, self._task = record.name, record.experiment.name
        self._dataset = dataset_of(data)
        self._view: tuple[str, str] | None = None
        # Names sort as numbers do only where they have equally many digits.
        self._digits = max(3, len(str(record.experiment.search.trials - 1)))
        self.ids: Mapping[str, str] = {}
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._now = 0
        self._runs: dict[tuple[str, int, str], str] = {}
        self._steps: dict[str, set[int]] = {}
        self._gathered: dict[str, list[Metric]] = {}
        self._made: set[str] = set()
        self._uploaded: dict[str, int] = {}
        self._calls: Mapping[str, Callable[..., None]] = {
            "start_search": self._start_search,
            "teacher": self._teacher,
            "start_trial": self._start_trial,
            "epoch": self._epoch,
            "end_trial": self._end_trial,
            "gains": self._gains,
            "cost": self._cost,
            "view": self._store_view,
            "report": self._report,
            "end_search": self._end_search,
            "confirmation": self._confirmation,
        }
        self._outbox = DeliveryQueue(outbox, self._deliver, _refused)

    def start_search(
        self, record: SearchRecord, experiment_yaml: str, facts: Mapping[str, str]
    ) -> None:
        """Opens the search's run, with the resolved experiment and facts like package versions."""
        params = {
            "student": ", ".join(record.experiment.students),
            "teacher": record.experiment.teacher.backbone,
            "data": record.experiment.data.name,
            "trials": str(record.experiment.search.trials),
            "epochs": str(record.experiment.training.epochs),
            **facts,
        }
        self._put(
            "start_search", params=params, experiment_yaml=experiment_yaml, dataset=self._dataset
        )
        self.log_view(record)

    def log_teacher(
        self, backbone: str, reports: list[EpochReport], metrics: Mapping[str, float]
    ) -> None:
        """Logs the teacher: its training where it was trained now, and its scores on the search."""
        entries = [asdict(report) for report in reports]
        self._put("teacher", backbone=backbone, reports=entries, metrics=dict(metrics))

    def start_trial(
        self, trial: TrialRecord, words: str, params: Mapping[str, str], cost: NetworkCost | None
    ) -> None:
        """Opens a trial's run, named by its number and these words, with its settings and costs."""
        settings = {plain_name(key): str(value) for key, value in trial.point.items()}
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
        """Logs an epoch's metrics in one batch, with the gain over the control that it led to."""
        self._put("epoch", number=number, report=asdict(report) | _gain(gain))

    def log_gains(self, record: SearchRecord, student: str) -> None:
        """Logs the gains of a student's trials anew: those over a control that has just ended."""
        gains = [
            (trial.number, trial.epochs_done, _gain(record.gain(trial)))
            for trial in record.trials
            if trial.student == student and record.gain(trial) is not None
        ]
        self._put("gains", gains=gains)

    def end_trial(self, trial: TrialRecord) -> None:
        """Closes a trial's run with its true state."""
        tags: dict[str, str] = {"state": trial.state}
        if trial.state == "stopped":
            tags["kdsearch.stop"] = f"asha@epoch{trial.epochs_done}"
        if trial.parts > 1:
            tags["kdsearch.parts"] = str(trial.parts)
        if trial.reason:
            tags["kdsearch.reason"] = trial.reason[:5000]
        student: dict[str, Any] = {}
        if trial.state == "finished" and trial.checkpoint is not None:
            student = {
                "name": trial.student,
                "params": {"objective": trial.objective},
                "tags": {"kdsearch.search": self._search, "kdsearch.checkpoint": trial.checkpoint},
                "step": trial.best_epoch,
                "metrics": {METRIC: trial.heldout_accuracy},
            }
        self._put(
            "end_trial",
            number=trial.number,
            tags=tags,
            status=_STATUS[trial.state],
            student=student,
        )

    def log_cost(self, record: SearchRecord) -> None:
        """Logs what the search took until now, on its own run."""
        self._put("cost", costs=_costs(record), step=sum(not t.unfinished for t in record.trials))

    def log_view(self, record: SearchRecord) -> None:
        """Stores the leaderboard's view where it has changed: its columns follow the leaders."""
        view = saved_view(record)
        if view != self._view:
            self._view = view
            self._put("view", key=view[0], value=view[1])

    def log_report(self, folder: Path) -> None:
        """Shows a report on the search's page: `summary.md` as its description, pictures in it,
        and all files as artifacts. They are read when they are sent."""
        self._put("report", folder=str(folder))

    def log_confirmation(
        self,
        key: str,
        words: str,
        trial: int | None,
        params: Mapping[str, str],
        reports: list[EpochReport],
        run: ConfirmationRun,
    ) -> None:
        """Logs a whole run of the confirmation, which its key names within the search."""
        tags = {"state": "failed" if run.reason else "finished"}
        if run.reason:
            tags["kdsearch.reason"] = run.reason[:5000]
        if trial is not None:
            tags["kdsearch.trial"] = str(trial)
        self._put(
            "confirmation",
            key=key,
            name=f"{words}, seed {run.seed}",
            params=dict(params),
            reports=[asdict(report) for report in reports],
            metrics={} if run.test_accuracy is None else {"test_accuracy": run.test_accuracy},
            tags=tags,
        )

    def end_search(self, record: SearchRecord) -> None:
        """Closes the search's run with the best accuracy and the control's."""
        done = [t for t in record.trials if t.state == "finished" and t.heldout_accuracy]
        best = max(done, key=lambda trial: trial.heldout_accuracy or 0.0, default=None)
        metrics = {}
        if best is not None:
            metrics[METRIC] = best.heldout_accuracy or 0.0
            control = record.control_of(best.student)
            if control is not None and control.heldout_accuracy is not None:
                metrics["control_heldout_accuracy"] = control.heldout_accuracy
        tags = {"state": record.state, "kdsearch.ended": record.ended}
        status = "FINISHED" if record.state == "finished" else "KILLED"
        self._put("end_search", metrics=metrics, tags=tags, status=status)

    def close(self) -> int:
        """Waits for what is still to be written; returns how many entries MLflow does not have."""
        return self._outbox.close(_CLOSE_SECONDS) + self._outbox.failures

    def _put(self, call: str, **arguments: Any) -> None:
        self._outbox.put({"call": call, "time": int(time.time() * 1000), "arguments": arguments})

    def _deliver(self, entries: Sequence[Mapping[str, Any]]) -> None:
        try:
            if self._client is None:
                self._client = MlflowClient(self._uri)
            for entry in entries:
                self._now = entry["time"]
                if entry["call"] != "epoch":
                    self._flush()
                self._calls[entry["call"]](**entry["arguments"])
            self._flush()
        except Exception:
            # The server may have done it, and only the answer was lost: look again before writing.
            self._runs, self._steps, self._made = {}, {}, set()
            self._gathered.clear()
            raise

    def _start_search(
        self, params: Mapping[str, str], experiment_yaml: str, dataset: Mapping[str, str]
    ) -> None:
        run = self._run("search", name=self._search)
        known = self._known(run).params
        # A search that was extended has more trials than its first session's parameter says.
        self._log(run, params={key: params[key] for key in params.keys() - known.keys()})
        self._log(run, tags={"kdsearch.trials": params["trials"], "state": "running"})
        self._ready.log_text(run, experiment_yaml, "experiment.yaml")
        self._link_dataset(run, dataset)
        self._reopen(run)

    def _teacher(
        self, backbone: str, reports: list[dict[str, Any]], metrics: Mapping[str, float]
    ) -> None:
        if reports:
            run = self._run("teacher", name=f"teacher {backbone}")
            for report in reports:
                self._log_report(run, report)
            self._log(run, params={"objective": "none", "student": backbone})
            self._end(run, "FINISHED")
        scores = {f"teacher_{name}": value for name, value in metrics.items()}
        run = self._run("search")
        if not scores.keys() <= self._known(run).metrics.keys():
            self._log(run, scores)

    def _start_trial(
        self,
        number: int,
        name: str,
        params: Mapping[str, str],
        costs: Mapping[str, float],
        dataset: Mapping[str, str],
    ) -> None:
        run = self._run("trial", number, name)
        known = self._known(run)
        new = {key: params[key] for key in params.keys() - known.params.keys()}
        measured = {} if costs.keys() <= known.metrics.keys() else costs
        self._log(run, measured, params=new, tags={"state": "running"})
        self._link_dataset(run, dataset)
        self._reopen(run)

    def _epoch(self, number: int, report: dict[str, Any]) -> None:
        self._log_report(self._run("trial", number), report)

    def _end_trial(
        self, number: int, tags: Mapping[str, str], status: str, student: Mapping[str, Any]
    ) -> None:
        run = self._run("trial", number)
        self._log(run, tags=tags)
        if student:
            self._link_student(run, **student)
        self._end(run, status)

    def _gains(self, gains: list[tuple[int, int, Mapping[str, float]]]) -> None:
        for number, epoch, gain in gains:
            self._log(self._run("trial", number), gain, epoch)

    def _cost(self, costs: Mapping[str, float], step: int) -> None:
        self._log(self._run("search"), costs, step)

    def _store_view(self, key: str, value: str) -> None:
        self._ready.set_experiment_tag(self._experiment(), key, value)

    def _report(self, folder: str) -> None:
        run = self._run("search")
        note = Path(folder) / SUMMARY
        if not note.exists():  # removed since; a file that is missing must not look like a server
            return
        pictures = sorted(Path(folder).glob("*.png"))
        for file in filter(Path.exists, (note, Path(folder) / TABLE, *pictures)):
            changed = file.stat().st_mtime_ns
            if self._uploaded.get(file.name) != changed:
                self._ready.log_artifact(run, str(file), "report")
                self._uploaded[file.name] = changed
        parts = (note.read_text(), *(_picture(run, file) for file in pictures))
        tables = [{"path": f"report/{TABLE}", "type": "table"}]
        tags = {
            "mlflow.note.content": "\n\n".join(parts),
            "mlflow.loggedArtifacts": json.dumps(tables),
        }
        self._log(run, tags=tags)

    def _end_search(
        self, metrics: Mapping[str, float], tags: Mapping[str, str], status: str
    ) -> None:
        run = self._run("search")
        self._log(run, metrics, tags=tags)
        self._end(run, status)

    def _confirmation(
        self,
        key: str,
        name: str,
        params: Mapping[str, str],
        reports: list[dict[str, Any]],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> None:
        run = self._run("confirmation", name=name, key=key)
        known = self._known(run)
        for report in reports:
            self._log_report(run, report)
        if metrics.keys() <= known.metrics.keys():
            metrics = {}
        self._log(run, metrics, params=params, tags=tags)
        self._end(run, "FAILED" if tags["state"] == "failed" else "FINISHED")

    def _log_report(self, run: str, report: dict[str, Any]) -> None:
        """Logs an epoch that the run does not have yet."""
        if run not in self._steps:
            history = self._ready.get_metric_history(run, METRIC)
            self._steps[run] = {metric.step for metric in history}
        epoch = report["epoch"]
        if epoch not in self._steps[run]:
            self._gathered.setdefault(run, []).extend(
                Metric(name, value, self._now, epoch) for name, value in _metrics(report).items()
            )
            self._steps[run].add(epoch)

    def _flush(self) -> None:
        """Sends the epochs that were gathered, those of a run together."""
        for run, metrics in self._gathered.items():
            for start in range(0, len(metrics), _METRICS_TOGETHER):
                self._ready.log_batch(run, metrics[start : start + _METRICS_TOGETHER])
        self._gathered.clear()

    @property
    def _ready(self) -> MlflowClient:
        assert self._client is not None
        return self._client

    def _known(self, run_id: str) -> RunData:
        """What a run has; one that was made by this process has nothing that could come twice."""
        return RunData() if run_id in self._made else self._ready.get_run(run_id).data

    def _experiment(self) -> str:
        if not self._experiment_id:
            found = self._ready.get_experiment_by_name(self._task)
            if found is not None:
                self._experiment_id = str(found.experiment_id)
            else:
                location = None if self._uri.startswith("http") else self._artifacts.as_uri()
                # Without the tag MLflow opens the experiment on its page for language models.
                tags = {"mlflow.experimentKind": "custom_model_development"}
                created = self._ready.create_experiment(self._task, location, tags)
                self._experiment_id = str(created)
        return self._experiment_id

    def _run(self, role: str, number: int = -1, name: str = "", key: str = "") -> str:
        """The id of a run of this search; it is made where it is missing."""
        if (role, number, key) not in self._runs:
            tags = {"kdsearch.search": self._search, "kdsearch.role": role}
            if number >= 0:
                tags["kdsearch.trial"] = str(number)
            if key:
                tags["kdsearch.confirmation"] = key
            wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
            found = self._ready.search_runs([self._experiment()], wanted, max_results=1)
            if found:
                run: Run = found[0]
            else:
                if role != "search":
                    tags["mlflow.parentRunId"] = self._run("search", name=self._search)
                run = self._ready.create_run(
                    self._experiment(), start_time=self._now, run_name=name or None, tags=tags
                )
                self._made.add(run.info.run_id)
                self._steps[run.info.run_id] = set()
            self._runs[role, number, key] = run.info.run_id
            if role == "search":
                self.ids = {
                    "mlflow_experiment_id": self._experiment(),
                    "mlflow_run_id": run.info.run_id,
                }
        return self._runs[role, number, key]

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._ready.log_batch(
            run_id,
            [Metric(name, value, self._now, step) for name, value in (metrics or {}).items()],
            [Param(name, value) for name, value in (params or {}).items()],
            [RunTag(name, value) for name, value in (tags or {}).items()],
        )

    def _link_dataset(self, run_id: str, dataset: Mapping[str, str]) -> None:
        tag = InputTag("mlflow.data.context", "training")
        self._ready.log_inputs(run_id, [DatasetInput(Dataset(**dataset), [tag])])

    def _link_student(
        self,
        run_id: str,
        name: str,
        params: dict[str, Any],
        tags: dict[str, Any],
        step: int,
        metrics: Mapping[str, float],
    ) -> None:
        """Lists a trained student among MLflow's models; its weights stay in the checkpoint."""
        known = self._ready.get_run(run_id).outputs
        if known is not None and known.model_outputs:
            return
        model = self._ready.create_logged_model(
            self._experiment(), name, run_id, tags, params, "student"
        )
        self._ready.finalize_logged_model(model.model_id, "READY")
        self._ready.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        self._ready.log_batch(
            run_id,
            [
                Metric(key, value, self._now, step, model_id=model.model_id)
                for key, value in metrics.items()
            ],
        )

    def _reopen(self, run_id: str) -> None:
        if run_id not in self._made:
            self._ready.update_run(run_id, status="RUNNING")

    def _end(self, run_id: str, status: str) -> None:
        self._ready.set_terminated(run_id, status, self._now)


def _refused(error: Exception) -> bool:
    """Whether MLflow understood an entry and will never take it; else it is away for a while."""
    if isinstance(error, MlflowException):
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        return status in (400, 404, 409)
    return not isinstance(error, OSError)


def _costs(record: SearchRecord) -> dict[str, float]:
    device = "gpu" if record.experiment.resources.gpus else "cpu"
    return {"hours": record.seconds / 3600, f"{device}_hours": record.device_seconds / 3600}


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    values = dict(report)
    terms = values.pop("train_terms")
    for name in ("epochs", "teacher", "teacher_seconds_saved", "parts"):
        values.pop(name)
    values["epochs_done"] = values.pop("epoch")
    return values | {f"train_{name}": value for name, value in terms.items()}


def _picture(run_id: str, file: Path) -> str:
    """Markdown that shows a picture of a run's report; pages resolve it against their server."""
    query = urlencode({"path": f"report/{file.name}", "run_uuid": run_id})
    return f"![{file.stem}](get-artifact?{query})"


def _gain(gain: float | None) -> dict[str, float]:
    # The difference of two short numbers is a long one.
    return {} if gain is None else {"gain": round(gain, 6)}


def store_view(uri: str, record: SearchRecord) -> None:
    """Stores a search's leaderboard view at once.

    Args:
        uri: of the tracking server.
        record: of a search whose experiment MLflow knows.

    Raises:
        OSError: the server is away, or does not take it.
    """
    assert record.mlflow_experiment_id is not None
    try:
        MlflowClient(uri).set_experiment_tag(record.mlflow_experiment_id, *saved_view(record))
    except MlflowException as error:
        raise OSError(f"MLflow at {uri}: {error.message}") from None
