"""Delivers a search's queued entries to MLflow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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

from search.errors import TrackingError
from search.record.record import METRIC, SearchRecord
from search.report.summary import SUMMARY, TABLE
from search.tracking.mlflow_private import EXPERIMENT_KIND, picture_markdown, tables_tag
from search.tracking.runs_table import runs_table

_METRICS_PER_REQUEST = 1000  # MLflow's limit
_REPORT = "report"  # a run's folder of artifacts


class MlflowWriter:
    """Writes entries to MLflow so that writing one twice does no harm.

    Every run has tags that name its search, role and trial. It is looked up by them before it is
    created, so a resumed search adds to the runs that exist. The names of calls and arguments in
    entries are a file format: queues that an earlier version wrote must be delivered.

    Args:
        uri: the tracking store or server.
        artifacts: the folder for artifacts of a local store; a server has its own place for them.
        task: the name of MLflow's experiment.
        search: the name of the search.

    Attributes:
        ids: MLflow's ids of experiment and run, as fields of the search's record, once known.
    """

    def __init__(self, uri: str, artifacts: Path, task: str, search: str) -> None:
        self._uri, self._artifacts, self._task, self._search = uri, artifacts, task, search
        self.ids: Mapping[str, str] = {}
        self._connected: MlflowClient | None = None
        self._experiment_id = ""
        self._now = 0
        self._runs: dict[tuple[str, int, str], str] = {}
        self._created: set[str] = set()
        self._epochs: dict[str, set[int]] = {}
        self._unsent: dict[str, list[Metric]] = {}
        self._uploaded: dict[str, int] = {}
        self._calls: Mapping[str, Callable[..., None]] = {
            "start_search": self._start_search,
            "teacher": self._teacher,
            "start_trial": self._start_trial,
            "epoch": self._epoch,
            "end_trial": self._end_trial,
            "gains": self._gains,
            "cost": self._cost,
            "view": self._save_runs_table,
            "report": self._report,
            "end_search": self._end_search,
            "confirmation": self._confirmation,
        }

    def deliver(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Writes entries in order; connects to MLflow first, if need be.

        Raises:
            Exception: MLflow is away or refuses one; `is_refusal` tells these apart.
        """
        try:
            if self._connected is None:
                self._connected = MlflowClient(self._uri)
            for entry in entries:
                self._now = entry["time"]
                if entry["call"] != "epoch":
                    self._flush()
                self._calls[entry["call"]](**entry["arguments"])
            self._flush()
        except Exception:
            # The request may have arrived and only the answer was lost: look again before writing.
            self._runs, self._epochs, self._unsent, self._created = {}, {}, {}, set()
            raise

    def _start_search(
        self, params: Mapping[str, str], experiment_yaml: str, dataset: Mapping[str, str]
    ) -> None:
        run = self._run("search", name=self._search)
        known = self._known(run).params
        # A search that was extended has more trials than its first session's parameter says.
        self._log(run, params={key: params[key] for key in params.keys() - known.keys()})
        self._log(run, tags={"kdsearch.trials": params["trials"], "state": "running"})
        self._client.log_text(run, experiment_yaml, "experiment.yaml")
        self._link_dataset(run, dataset)
        self._reopen(run)

    def _teacher(
        self, backbone: str, reports: list[dict[str, Any]], metrics: Mapping[str, float]
    ) -> None:
        if reports:
            run = self._run("teacher", name=f"teacher {backbone}")
            for report in reports:
                self._log_epoch_once(run, report)
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
        self._log_epoch_once(self._run("trial", number), report)

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

    def _save_runs_table(self, key: str, value: str) -> None:
        self._client.set_experiment_tag(self._experiment(), key, value)

    def _report(self, folder: str) -> None:
        run = self._run("search")
        note = Path(folder) / SUMMARY
        if not note.exists():  # removed since; its error would look like a server that is away
            return
        pictures = sorted(Path(folder).glob("*.png"))
        for file in filter(Path.exists, (note, Path(folder) / TABLE, *pictures)):
            changed = file.stat().st_mtime_ns
            if self._uploaded.get(file.name) != changed:
                self._client.log_artifact(run, str(file), _REPORT)
                self._uploaded[file.name] = changed
        shown = [picture_markdown(run, f"{_REPORT}/{file.name}") for file in pictures]
        description = "\n\n".join((note.read_text(), *shown))
        tags = {"mlflow.note.content": description, **tables_tag([f"{_REPORT}/{TABLE}"])}
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
            self._log_epoch_once(run, report)
        if metrics.keys() <= known.metrics.keys():
            metrics = {}
        self._log(run, metrics, params=params, tags=tags)
        self._end(run, "FAILED" if tags["state"] == "failed" else "FINISHED")

    def _log_epoch_once(self, run: str, report: dict[str, Any]) -> None:
        """Adds an epoch that the run does not have yet to those that `_flush` sends."""
        if run not in self._epochs:
            history = self._client.get_metric_history(run, METRIC)
            self._epochs[run] = {metric.step for metric in history}
        epoch = report["epoch"]
        if epoch not in self._epochs[run]:
            self._unsent.setdefault(run, []).extend(
                Metric(name, value, self._now, epoch) for name, value in _metrics(report).items()
            )
            self._epochs[run].add(epoch)

    def _flush(self) -> None:
        """Sends the epochs that were added, those of a run together."""
        for run, metrics in self._unsent.items():
            for start in range(0, len(metrics), _METRICS_PER_REQUEST):
                self._client.log_batch(run, metrics[start : start + _METRICS_PER_REQUEST])
        self._unsent.clear()

    @property
    def _client(self) -> MlflowClient:
        assert self._connected is not None
        return self._connected

    def _known(self, run_id: str) -> RunData:
        """What a run already has; nothing, if this process has just created it."""
        return RunData() if run_id in self._created else self._client.get_run(run_id).data

    def _experiment(self) -> str:
        if not self._experiment_id:
            found = self._client.get_experiment_by_name(self._task)
            if found is not None:
                self._experiment_id = str(found.experiment_id)
            else:
                location = None if self._uri.startswith("http") else self._artifacts.as_uri()
                created = self._client.create_experiment(self._task, location, EXPERIMENT_KIND)
                self._experiment_id = str(created)
        return self._experiment_id

    def _run(self, role: str, number: int = -1, name: str = "", key: str = "") -> str:
        """The id of a run of this search, which is created if it does not exist."""
        if (role, number, key) not in self._runs:
            tags = {"kdsearch.search": self._search, "kdsearch.role": role}
            if number >= 0:
                tags["kdsearch.trial"] = str(number)
            if key:
                tags["kdsearch.confirmation"] = key
            query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
            found = self._client.search_runs([self._experiment()], query, max_results=1)
            if found:
                run: Run = found[0]
            else:
                if role != "search":
                    tags["mlflow.parentRunId"] = self._run("search", name=self._search)
                run = self._client.create_run(
                    self._experiment(), start_time=self._now, run_name=name or None, tags=tags
                )
                self._created.add(run.info.run_id)
                self._epochs[run.info.run_id] = set()
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
        self._client.log_batch(
            run_id,
            [Metric(name, value, self._now, step) for name, value in (metrics or {}).items()],
            [Param(name, value) for name, value in (params or {}).items()],
            [RunTag(name, value) for name, value in (tags or {}).items()],
        )

    def _link_dataset(self, run_id: str, dataset: Mapping[str, str]) -> None:
        tag = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(run_id, [DatasetInput(Dataset(**dataset), [tag])])

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
        known = self._client.get_run(run_id).outputs
        if known is not None and known.model_outputs:
            return
        model = self._client.create_logged_model(
            self._experiment(), name, run_id, tags, params, "student"
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        self._client.log_batch(
            run_id,
            [
                Metric(key, value, self._now, step, model_id=model.model_id)
                for key, value in metrics.items()
            ],
        )

    def _reopen(self, run_id: str) -> None:
        if run_id not in self._created:
            self._client.update_run(run_id, status="RUNNING")

    def _end(self, run_id: str, status: str) -> None:
        self._client.set_terminated(run_id, status, self._now)


def is_refusal(error: Exception) -> bool:
    """Whether MLflow understood an entry and will never take it; otherwise it is away for now."""
    if isinstance(error, MlflowException):
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        return status in (400, 404, 409)
    return not isinstance(error, OSError)


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """An epoch's report as MLflow's metrics."""
    values = dict(report)
    terms = values.pop("train_terms")
    for name in ("epochs", "teacher", "teacher_seconds_saved", "parts"):
        values.pop(name, None)
    values["epochs_done"] = values.pop("epoch")
    return values | {f"train_{name}": value for name, value in terms.items()}


def save_runs_table(uri: str, record: SearchRecord) -> None:
    """Saves the runs table of a search that MLflow knows, at once and past the queue.

    Raises:
        TrackingError: the server is away, or refuses it.
    """
    assert record.mlflow_experiment_id is not None
    try:
        MlflowClient(uri).set_experiment_tag(record.mlflow_experiment_id, *runs_table(record))
    except MlflowException as error:
        raise TrackingError(f"MLflow at {uri}: {error.message}") from None
