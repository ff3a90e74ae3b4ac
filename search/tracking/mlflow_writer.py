"""Delivers a search's queued entries to MLflow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from search.errors import TrackingError
from search.record.record import SearchRecord
from search.report.summary import SUMMARY, TABLE
from search.tracking.mlflow_private import EXPERIMENT_KIND, picture_markdown, tables_tag
from search.tracking.runs_table import runs_table
from search.tracking.tracked_runs import RunKey, TrackedRun, TrackedRuns

_REPORT = "report"  # a run's folder of artifacts


class MlflowWriter:
    """Writes entries to MLflow so that writing one twice does no harm.

    Every run has tags that name its search, role and trial. By them it is found before it is
    created, so a resumed search adds to the runs that exist. A batch of entries becomes one request
    a run, where it can. The names of calls and arguments in entries are a file format: queues that
    an earlier version wrote must be delivered.

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
        self._client: MlflowClient | None = None
        self._runs: TrackedRuns | None = None
        self._experiment_id = ""
        self._now = 0
        self._views: dict[str, str] = {}
        self._uploaded: dict[str, int] = {}
        self._calls: Mapping[str, Callable[..., None]] = {
            "start_search": self._start_search,
            "teacher": self._teacher,
            "start_trial": self._start_trial,
            "epoch": self._epoch,
            "end_trial": self._end_trial,
            "gains": self._gains,
            "cost": self._cost,
            "view": self._view,
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
            for entry in entries:
                self._now = entry["time"]
                self._calls[entry["call"]](**entry["arguments"])
            if self._runs is not None:
                self._runs.send()
            for key, value in self._views.items():
                self._connected.set_experiment_tag(self._experiment(), key, value)
            self._views.clear()
        except Exception:
            self._views.clear()
            if self._runs is not None:
                self._runs.forget()
            raise

    def _start_search(
        self, params: Mapping[str, str], experiment_yaml: str, dataset: Mapping[str, str]
    ) -> None:
        run = self._run("search", name=self._search)
        # A search that was extended has more trials than its first session's parameter says.
        run.set_params(params)
        run.set_tags({"kdsearch.trials": params["trials"], "state": "running"})
        self._connected.log_text(run.id, experiment_yaml, "experiment.yaml")
        run.link_dataset(dataset)
        run.reopen()

    def _teacher(
        self,
        backbone: str,
        reports: list[dict[str, Any]],
        metrics: Mapping[str, float],
        key: str = "",
    ) -> None:
        scores = {f"teacher_{name}": value for name, value in metrics.items()}
        if reports or key:
            run = self._run("teacher", name=f"teacher {backbone}", key=key)
            for report in reports:
                run.log_epoch(self._now, _metrics(report), report["epoch"])
            run.set_params({"objective": "none", "student": backbone})
            if key:  # one of several, which the search's run has no room for
                run.log_once(self._now, scores)
            run.end(self._now, "FINISHED")
        if not key:
            self._run("search").log_once(self._now, scores)

    def _start_trial(
        self,
        number: int,
        name: str,
        params: Mapping[str, str],
        costs: Mapping[str, float],
        dataset: Mapping[str, str],
    ) -> None:
        run = self._run("trial", number, name)
        run.log_once(self._now, costs)
        run.set_params(params)
        run.set_tags({"state": "running"})
        run.link_dataset(dataset)
        run.reopen()

    def _epoch(self, number: int, report: dict[str, Any]) -> None:
        self._run("trial", number).log_epoch(self._now, _metrics(report), report["epoch"])

    def _end_trial(
        self, number: int, tags: Mapping[str, str], status: str, student: Mapping[str, Any]
    ) -> None:
        run = self._run("trial", number)
        run.set_tags(tags)
        if student:
            run.link_student(self._now, student)
        run.end(self._now, status)

    def _gains(self, gains: list[tuple[int, int, Mapping[str, float]]]) -> None:
        for number, epoch, gain in gains:
            self._run("trial", number).log(self._now, gain, epoch)

    def _cost(self, costs: Mapping[str, float], step: int) -> None:
        self._run("search").log_newest(self._now, costs, step)

    def _view(self, key: str, value: str) -> None:
        self._views[key] = value

    def _report(self, folder: str) -> None:
        run = self._run("search")
        note = Path(folder) / SUMMARY
        if not note.exists():  # removed since; its error would look like a server that is away
            return
        pictures = sorted(Path(folder).glob("*.png"))
        for file in filter(Path.exists, (note, Path(folder) / TABLE, *pictures)):
            changed = file.stat().st_mtime_ns
            if self._uploaded.get(file.name) != changed:
                self._connected.log_artifact(run.id, str(file), _REPORT)
                self._uploaded[file.name] = changed
        shown = [picture_markdown(run.id, f"{_REPORT}/{file.name}") for file in pictures]
        description = "\n\n".join((note.read_text(), *shown))
        run.set_tags({"mlflow.note.content": description, **tables_tag([f"{_REPORT}/{TABLE}"])})

    def _end_search(
        self, metrics: Mapping[str, float], tags: Mapping[str, str], status: str
    ) -> None:
        run = self._run("search")
        run.log(self._now, metrics)
        run.set_tags(tags)
        run.end(self._now, status)

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
        for report in reports:
            run.log_epoch(self._now, _metrics(report), report["epoch"])
        run.log_once(self._now, metrics)
        run.set_params(params)
        run.set_tags(tags)
        run.end(self._now, "FAILED" if tags["state"] == "failed" else "FINISHED")

    @property
    def _connected(self) -> MlflowClient:
        """The client, which connects when it is made."""
        if self._client is None:
            self._client = MlflowClient(self._uri)
        return self._client

    def _experiment(self) -> str:
        if not self._experiment_id:
            found = self._connected.get_experiment_by_name(self._task)
            if found is not None:
                self._experiment_id = str(found.experiment_id)
            else:
                location = None if self._uri.startswith("http") else self._artifacts.as_uri()
                created = self._connected.create_experiment(self._task, location, EXPERIMENT_KIND)
                self._experiment_id = str(created)
        return self._experiment_id

    def _run(self, role: str, number: int = -1, name: str = "", key: str = "") -> TrackedRun:
        """A run of this search, which is created if it does not exist."""
        if self._runs is None:
            self._runs = TrackedRuns(self._connected, self._experiment(), self._search)
        run = self._runs.run(self._now, RunKey(role, number, key), name)
        if role == "search":
            self.ids = {"mlflow_experiment_id": self._experiment(), "mlflow_run_id": run.id}
        return run


def is_refusal(error: Exception) -> bool:
    """Whether MLflow understood an entry and will never take it; otherwise it is away for now."""
    if isinstance(error, MlflowException):
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        return status in (400, 404, 409)
    return not isinstance(error, OSError)


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """An epoch's report as MLflow's metrics, but for what the search's report tells of all trials
    together: thousands of trials make a page slow."""
    values = dict(report)
    terms = values.pop("train_terms")
    together = ("teacher", "teacher_seconds_saved", "seconds_by_part")
    for name in ("epoch", "epochs", "parts", *together):
        values.pop(name, None)
    # Not defined, or of no average; an entry of an earlier version has fewer.
    values = {
        name: value for name, value in values.items() if value is not None and value is not False
    }
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
