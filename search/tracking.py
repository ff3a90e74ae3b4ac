"""MLflow: one experiment a task, one run a search, one child run a trial.

Calls return at once; a thread makes them in order, from a queue on disk. A server that is away
gets them when it is back, also by a later process. What MLflow refuses is written to the log and
counted, and never ends a search.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

# Read when mlflow is imported. Two quick retries: the queue tries again by itself.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunData, RunTag
from mlflow.exceptions import MlflowException

from kdcore.measure import NetworkCost
from kdcore.training import EpochReport
from search.outbox import Outbox
from search.record import METRIC, ConfirmationRun, SearchRecord, State, TrialRecord
from search.space import plain_name

# MLflow's own words for how a run ended. KILLED tells a trial that ASHA cut from one that finished.
_STATUS: Mapping[State, str] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}

_CLOSE_SECONDS = 60.0


class Tracker:
    """Logs a search to MLflow. Every run has tags that name its search, its role and its trial; by
    them it is found again, so that a search that goes on adds to the runs that are there.

    Args:
        uri: of the tracking store or server.
        artifacts: where a local store keeps artifacts; a server decides by itself.
        outbox: the file of the entries that MLflow did not get yet.
        record: of the search.

    Attributes:
        ids: MLflow's ids of experiment and search, as the search's record names them, once known.
    """

    def __init__(self, uri: str, artifacts: Path, outbox: Path, record: SearchRecord) -> None:
        self._uri, self._artifacts = uri, artifacts
        self._search, self._task = record.name, record.experiment.name
        self.ids: Mapping[str, str] = {}
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._now = 0
        self._runs: dict[tuple[str, int, str], str] = {}
        self._steps: dict[str, set[int]] = {}
        self._made: set[str] = set()
        self._calls: Mapping[str, Callable[..., None]] = {
            "start_search": self._start_search,
            "teacher": self._teacher,
            "start_trial": self._start_trial,
            "epoch": self._epoch,
            "end_trial": self._end_trial,
            "cost": self._cost,
            "end_search": self._end_search,
            "confirmation": self._confirmation,
        }
        self._outbox = Outbox(outbox, self._deliver, _refused)

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
        self._put("start_search", params=params, experiment_yaml=experiment_yaml)

    def log_teacher(
        self, backbone: str, reports: list[EpochReport], metrics: Mapping[str, float]
    ) -> None:
        """Logs the teacher: its training where it was trained now, and its scores on the search."""
        entries = [asdict(report) for report in reports]
        self._put("teacher", backbone=backbone, reports=entries, metrics=dict(metrics))

    def start_trial(
        self, trial: TrialRecord, words: str, params: Mapping[str, str], cost: NetworkCost | None
    ) -> None:
        """Opens a trial's run, named by its number and these words."""
        settings = {plain_name(key): str(value) for key, value in trial.point.items()}
        costs = {}
        if cost is not None:
            costs = {"parameters": float(cost.parameters), "latency_ms": cost.latency_ms}
        self._put(
            "start_trial",
            number=trial.number,
            name=f"{trial.number:03d} {words}",
            params={"objective": trial.objective, **settings, **params},
            costs=costs,
        )

    def log_epoch(self, number: int, report: EpochReport) -> None:
        """Logs an epoch's metrics in one batch."""
        self._put("epoch", number=number, report=asdict(report))

    def end_trial(self, trial: TrialRecord) -> None:
        """Closes a trial's run with its true state."""
        tags: dict[str, str] = {"kdsearch.state": trial.state}
        if trial.state == "stopped":
            tags["kdsearch.stop"] = f"asha@epoch{trial.epochs_done}"
        if trial.reason:
            tags["kdsearch.reason"] = trial.reason[:5000]
        self._put("end_trial", number=trial.number, tags=tags, status=_STATUS[trial.state])

    def log_cost(self, record: SearchRecord) -> None:
        """Logs what the search took until now, on its own run."""
        self._put("cost", costs=_costs(record), step=sum(not t.unfinished for t in record.trials))

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
        tags = {"kdsearch.state": "failed" if run.reason else "finished"}
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
        tags = {"kdsearch.state": record.state, "kdsearch.ended": record.ended}
        status = "FINISHED" if record.state == "finished" else "KILLED"
        self._put("end_search", metrics=metrics, tags=tags, status=status)

    def close(self) -> int:
        """Waits for what is still to be written; returns how many entries MLflow does not have."""
        return self._outbox.close(_CLOSE_SECONDS) + self._outbox.failures

    def _put(self, call: str, **arguments: Any) -> None:
        self._outbox.put({"call": call, "time": int(time.time() * 1000), "arguments": arguments})

    def _deliver(self, entry: Mapping[str, Any]) -> None:
        try:
            self._now = entry["time"]
            if self._client is None:
                self._client = MlflowClient(self._uri)
            self._calls[entry["call"]](**entry["arguments"])
        except Exception:
            # The server may have done it, and only the answer was lost: look again before writing.
            self._runs, self._steps, self._made = {}, {}, set()
            raise

    def _start_search(self, params: Mapping[str, str], experiment_yaml: str) -> None:
        run = self._run("search", name=self._search)
        known = self._known(run).params
        # A search that was extended has more trials than its first session's parameter says.
        self._log(run, params={key: params[key] for key in params.keys() - known.keys()})
        self._ready.set_tag(run, "kdsearch.trials", params["trials"])
        self._ready.log_text(run, experiment_yaml, "experiment.yaml")
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
        self, number: int, name: str, params: Mapping[str, str], costs: Mapping[str, float]
    ) -> None:
        run = self._run("trial", number, name)
        known = self._known(run)
        if not costs.keys() <= known.metrics.keys():
            self._log(run, costs)
        self._log(run, params={key: params[key] for key in params.keys() - known.params.keys()})
        self._reopen(run)

    def _epoch(self, number: int, report: dict[str, Any]) -> None:
        self._log_report(self._run("trial", number), report)

    def _end_trial(self, number: int, tags: Mapping[str, str], status: str) -> None:
        run = self._run("trial", number)
        self._log(run, tags=tags)
        self._end(run, status)

    def _cost(self, costs: Mapping[str, float], step: int) -> None:
        self._log(self._run("search"), costs, step)

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
        self._end(run, "FAILED" if tags["kdsearch.state"] == "failed" else "FINISHED")

    def _log_report(self, run: str, report: dict[str, Any]) -> None:
        """Logs an epoch that the run does not have yet."""
        if run not in self._steps:
            history = self._ready.get_metric_history(run, METRIC)
            self._steps[run] = {metric.step for metric in history}
        epoch = report["epoch"]
        if epoch not in self._steps[run]:
            self._log(run, _metrics(report), epoch)
            self._steps[run].add(epoch)

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
    for name in ("epoch", "epochs", "teacher", "teacher_seconds_saved"):
        values.pop(name)
    return values | {f"train_{name}": value for name, value in terms.items()}


def leaderboard_link(base: str, record: SearchRecord | None) -> str:
    """The address of MLflow's runs table with this search's trials, best first.

    Args:
        base: of the server, like `http://127.0.0.1:5000`.
        record: the search; without one, or without its experiment's id, the server's first page.
    """
    if record is None or record.mlflow_experiment_id is None:
        return base
    query = urlencode(
        {
            "searchFilter": f"tags.`kdsearch.search` = '{record.name}' "
            "and tags.`kdsearch.role` = 'trial'",
            "orderByKey": f"metrics.`{METRIC}`",
            "orderByAsc": "false",
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "compareRunsMode": "TABLE",
        },
        quote_via=quote,
    )
    return f"{base}/#/experiments/{record.mlflow_experiment_id}/runs?{query}"
