"""MLflow: one experiment a task, one run a search, one child run a trial.

Calls return at once; a thread makes them in order. What MLflow refuses is written to the log and
counted, and never ends a search.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

# Read when mlflow is imported. Two quick retries: what waits behind a dead server is lost anyway.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from kdcore.measure import NetworkCost
from kdcore.training import EpochReport
from search.record import SearchRecord, State, TrialRecord
from search.searcher import METRIC
from search.space import plain_name

_LOG = logging.getLogger(__name__)

# MLflow's own words for how a run ended. KILLED tells a trial that ASHA cut from one that finished.
_STATUS: Mapping[State, str] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}

_CLOSE_SECONDS = 60.0


class Tracker:
    """Logs a search to MLflow.

    Args:
        uri: of the tracking store or server.
        artifacts: where a local store keeps artifacts; a server decides by itself.

    Attributes:
        ids: MLflow's ids of experiment and search, as the search's record names them, once known.
        failures: how many calls MLflow refused.
    """

    def __init__(self, uri: str, artifacts: Path) -> None:
        self._uri, self._artifacts = uri, artifacts
        self.ids: Mapping[str, str] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._pending: list[Future[None]] = []
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._search_run = ""
        self._search_name = ""
        self._runs: dict[int | str, str] = {}
        self.failures = 0

    def start_search(
        self, record: SearchRecord, experiment_yaml: str, facts: Mapping[str, str]
    ) -> None:
        """Opens the search's run, with the resolved experiment and facts like package versions."""
        self._search_name = record.name

        def log() -> None:
            try:
                self._client = MlflowClient(self._uri)
                open_search()
            except Exception:
                self._client = None  # what follows need not knock at a closed door as well
                raise

        def open_search() -> None:
            self._experiment_id = self._find_experiment(record.experiment.name)
            run = self._create_run("search", record.name, {})
            self._search_run = run.info.run_id
            params = {
                "student": ", ".join(record.experiment.students),
                "teacher": record.experiment.teacher.backbone,
                "data": record.experiment.data.name,
                "trials": str(record.experiment.search.trials),
                "epochs": str(record.experiment.training.epochs),
                **facts,
            }
            self._log(self._search_run, params=params)
            self._ready.log_text(self._search_run, experiment_yaml, "experiment.yaml")
            self.ids = {
                "mlflow_experiment_id": self._experiment_id,
                "mlflow_run_id": self._search_run,
            }

        self._submit(log)

    def log_teacher(
        self, backbone: str, reports: list[EpochReport], metrics: Mapping[str, float]
    ) -> None:
        """Logs the teacher: its training where it was trained now, and its scores on the search."""

        def log() -> None:
            if reports:
                run = self._create_run("teacher", f"teacher {backbone}", {})
                for report in reports:
                    self._log(run.info.run_id, _metrics(report), report.epoch)
                self._log(run.info.run_id, params={"objective": "none", "student": backbone})
                self._end(run.info.run_id, "FINISHED")
            self._log(self._search_run, {f"teacher_{name}": v for name, v in metrics.items()})

        self._submit(log)

    def start_trial(
        self, trial: TrialRecord, words: str, params: Mapping[str, str], cost: NetworkCost | None
    ) -> None:
        """Opens a trial's run, named by its number and these words."""

        def log() -> None:
            tags = {"kdsearch.trial": str(trial.number)}
            run = self._create_run("trial", f"{trial.number:03d} {words}", tags)
            self._runs[trial.number] = run.info.run_id
            settings = {plain_name(key): str(value) for key, value in trial.point.items()}
            costs = {}
            if cost is not None:
                costs = {"parameters": float(cost.parameters), "latency_ms": cost.latency_ms}
            params_ = {"objective": trial.objective, **settings, **params}
            self._log(run.info.run_id, costs, params=params_)

        self._submit(log)

    def log_epoch(self, number: int, report: EpochReport) -> None:
        """Logs an epoch's metrics in one batch."""
        self._submit(lambda: self._log(self._runs[number], _metrics(report), report.epoch))

    def end_trial(self, trial: TrialRecord) -> None:
        """Closes a trial's run with its true state."""

        def log() -> None:
            tags: dict[str, str] = {"kdsearch.state": trial.state}
            if trial.state == "stopped":
                tags["kdsearch.stop"] = f"asha@epoch{trial.epochs_done}"
            if trial.reason:
                tags["kdsearch.reason"] = trial.reason[:5000]
            run_id = self._runs[trial.number]
            self._log(run_id, tags=tags)
            self._end(run_id, _STATUS[trial.state])

        self._submit(log)

    def end_search(self, record: SearchRecord) -> None:
        """Closes the search's run with the best accuracy and the control's."""

        def log() -> None:
            done = [t for t in record.trials if t.state == "finished" and t.heldout_accuracy]
            best = max(done, key=lambda trial: trial.heldout_accuracy or 0.0, default=None)
            metrics = {}
            if best is not None:
                metrics[METRIC] = best.heldout_accuracy or 0.0
                control = record.control_of(best.student)
                if control is not None and control.heldout_accuracy is not None:
                    metrics["control_heldout_accuracy"] = control.heldout_accuracy
            self._log(self._search_run, metrics, tags={"kdsearch.state": record.state})
            self._end(self._search_run, "FINISHED" if record.state == "finished" else "KILLED")

        self._submit(log)

    def close(self) -> int:
        """Waits for what is still to be written; returns how many calls failed or were given up."""
        _, unfinished = wait(self._pending, timeout=_CLOSE_SECONDS)
        self._thread.shutdown(wait=not unfinished, cancel_futures=True)
        return self.failures + len(unfinished)

    def _submit(self, call: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                call()
            except Exception:
                self.failures += 1
                _LOG.exception("MLflow at %s", self._uri)

        self._pending = [future for future in self._pending if not future.done()]
        self._pending.append(self._thread.submit(guarded))

    @property
    def _ready(self) -> MlflowClient:
        if self._client is None:
            raise ConnectionError("the search's run could not be opened")
        return self._client

    def _find_experiment(self, name: str) -> str:
        found = self._ready.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None if self._uri.startswith("http") else self._artifacts.as_uri()
        # Without the tag MLflow opens the experiment on its page for language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._ready.create_experiment(name, location, tags))

    def _create_run(self, role: str, name: str, tags: Mapping[str, str]) -> Run:
        parent = {"mlflow.parentRunId": self._search_run} if self._search_run else {}
        return self._ready.create_run(
            self._experiment_id,
            run_name=name,
            tags={"kdsearch.role": role, "kdsearch.search": self._search_name, **parent, **tags},
        )

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        now = int(time.time() * 1000)
        self._ready.log_batch(
            run_id,
            [Metric(name, value, now, step) for name, value in (metrics or {}).items()],
            [Param(name, value) for name, value in (params or {}).items()],
            [RunTag(name, value) for name, value in (tags or {}).items()],
        )

    def _end(self, run_id: str, status: str) -> None:
        self._ready.set_terminated(run_id, status)


def _metrics(report: EpochReport) -> dict[str, float]:
    values: dict[str, Any] = asdict(report)
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
