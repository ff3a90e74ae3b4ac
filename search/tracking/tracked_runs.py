"""A search's runs in MLflow: each is found or created once, and written to in few requests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    RunTag,
)

_RUNS_PER_REQUEST = 1000

# What MLflow does not take in the name of a model: `timm/resnet18 (best.pth)` is one of ours.
_NOT_IN_NAMES = str.maketrans(dict.fromkeys("/:.%\"'", "-"))
_RUNNING = "RUNNING"
_EPOCHS = "epochs_done"


@dataclass
class _Content:
    """What MLflow has of a run, as far as it decides on what is sent."""

    params: set[str] = field(default_factory=set)
    metrics: set[str] = field(default_factory=set)
    epochs: int = 0
    status: str = _RUNNING
    has_dataset: bool = False
    has_student: bool = False


def _content(run: Run) -> _Content:
    return _Content(
        set(run.data.params),
        set(run.data.metrics),
        int(run.data.metrics.get(_EPOCHS, 0)),
        run.info.status,
        bool(run.inputs and run.inputs.dataset_inputs),
        bool(run.outputs and run.outputs.model_outputs),
    )


class TrackedRun:
    """A run, with what it is to get in the next requests.

    Args:
        client: of MLflow.
        experiment: the id of the run's experiment.
        run_id: its id.
        content: what MLflow has of it; none if MLflow has to be asked.
    """

    def __init__(
        self, client: MlflowClient, experiment: str, run_id: str, content: _Content | None
    ) -> None:
        self.id = run_id
        self._client, self._experiment, self._content = client, experiment, content
        self._metrics: list[Metric] = []
        self._newest: list[Metric] = []
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._dataset: Mapping[str, str] | None = None
        self._student: dict[str, Any] | None = None
        self._ended_at = 0
        self._status = ""

    @property
    def _known(self) -> _Content:
        if self._content is None:
            self._content = _content(self._client.get_run(self.id))
        return self._content

    def log(self, now: int, metrics: Mapping[str, float], step: int = 0) -> None:
        """Adds values of metrics to those that it has."""
        self._metrics += _measured(now, metrics, step)

    def log_once(self, now: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics that have one value each, unless it has them."""
        if not metrics.keys() <= self._known.metrics:
            self._known.metrics.update(metrics)
            self.log(now, metrics)

    def log_newest(self, now: int, metrics: Mapping[str, float], step: int) -> None:
        """Adds values of which only the last before the next request are worth it."""
        self._newest = _measured(now, metrics, step)

    def log_epoch(self, now: int, metrics: Mapping[str, float], epoch: int) -> None:
        """Adds an epoch, unless it has it. Epochs come in order."""
        if epoch > self._known.epochs:
            self._known.epochs = epoch
            # What says that the epoch is there comes last, should a request be split.
            self.log(now, {**metrics, _EPOCHS: float(epoch)}, epoch)

    def set_params(self, params: Mapping[str, str]) -> None:
        """Sets those parameters that it does not have: MLflow takes no other value for one."""
        new = params.keys() - self._known.params
        self._known.params.update(new)
        self._params.update((key, params[key]) for key in new)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags, or changes them."""
        self._tags.update(tags)

    def link_dataset(self, dataset: Mapping[str, str]) -> None:
        """Says what it was trained with, the arguments of MLflow's `Dataset`."""
        if not self._known.has_dataset:
            self._known.has_dataset = True
            self._dataset = dataset

    def link_student(self, now: int, student: Mapping[str, Any]) -> None:
        """Lists a trained student among MLflow's models; its weights stay in the checkpoint."""
        if not self._known.has_student:
            self._known.has_student = True
            self._student = {"now": now, **student}

    def reopen(self) -> None:
        """Has it running, also if it has ended."""
        if self._known.status != _RUNNING:
            self._known.status = self._status = _RUNNING

    def end(self, now: int, status: str) -> None:
        """Has it ended, in a state as MLflow calls it."""
        if self._content is not None:
            self._content.status = status
        self._status, self._ended_at = status, now

    def send(self) -> None:
        """Sends what was added since; afterwards there is nothing to send."""
        model = self._create_model(**self._student) if self._student is not None else None
        # The client splits what is more than a request may hold.
        self._client.log_batch(
            self.id,
            [*self._metrics, *self._newest],
            [Param(name, value) for name, value in self._params.items()],
            [RunTag(name, value) for name, value in self._tags.items()],
        )
        if self._dataset is not None:
            tag = InputTag("mlflow.data.context", "training")
            self._client.log_inputs(self.id, [DatasetInput(Dataset(**self._dataset), [tag])])
        if model is not None:
            self._client.finalize_logged_model(model.model_id, "READY")
            self._client.log_outputs(self.id, [model])
        if self._status == _RUNNING:
            self._client.update_run(self.id, self._status)
        elif self._status:
            self._client.set_terminated(self.id, self._status, self._ended_at)
        self._metrics, self._newest, self._params, self._tags = [], [], {}, {}
        self._dataset = self._student = None
        self._status = ""

    def _create_model(
        self,
        now: int,
        name: str,
        params: dict[str, Any],
        tags: dict[str, Any],
        step: int,
        metrics: Mapping[str, float],
    ) -> LoggedModelOutput:
        of_model = {(name, step) for name in metrics}
        model = self._client.create_logged_model(
            self._experiment,
            name.translate(_NOT_IN_NAMES),
            self.id,
            tags,
            params,
            "student",
        )
        # An epoch's value that is the model's must not be in a request twice: MLflow's store would
        # reject all of them at first, and then look for each single one.
        others = [each for each in self._metrics if (each.key, each.step) not in of_model]
        self._metrics = others + _measured(now, metrics, step, model.model_id)
        return LoggedModelOutput(model.model_id, step)


def _measured(
    now: int, metrics: Mapping[str, float], step: int, model: str | None = None
) -> list[Metric]:
    return [Metric(name, value, now, step, model_id=model) for name, value in metrics.items()]


@dataclass(frozen=True)
class RunKey:
    """What a run of a search is, which its tags say.

    Args:
        role: search, teacher, trial or confirmation.
        number: of a trial.
        key: of a confirmation's run, or of one of several teachers.
    """

    role: str
    number: int = -1
    key: str = ""

    @property
    def tags(self) -> dict[str, str]:
        """The run's tags that say it."""
        tags = {"kdsearch.role": self.role}
        if self.number >= 0:
            tags["kdsearch.trial"] = str(self.number)
        if self.key:
            tags[f"kdsearch.{self.role}"] = self.key
        return tags


class TrackedRuns:
    """The runs of a search, by what they are.

    The trials' runs that exist are listed once, those of other roles are looked up. Then no request
    is needed to know whether one exists, except for those whose last requests may have failed.

    Args:
        client: of MLflow.
        experiment: the id of the search's experiment.
        search: the name of the search.
    """

    def __init__(self, client: MlflowClient, experiment: str, search: str) -> None:
        self._client, self._experiment, self._search = client, experiment, search
        self._runs: dict[RunKey, TrackedRun] = {}
        self._are_listed = False
        self._used: dict[RunKey, None] = {}  # in order
        self._doubtful: set[RunKey] = set()

    def run(self, now: int, key: RunKey, name: str = "") -> TrackedRun:
        """A run, which is created if it does not exist.

        Args:
            now: when it begins if it is created, in milliseconds since 1970.
            key: what it is.
            name: its name if it is created.
        """
        self._used[key] = None
        if key not in self._runs:
            self._runs[key] = self._found(key) or self._created(now, key, name)
        return self._runs[key]

    def send(self) -> None:
        """Sends what was added to the runs."""
        for key in self._used:
            self._runs[key].send()
        self._doubtful -= self._used.keys()
        self._used.clear()

    def forget(self) -> None:
        """Drops what was not sent; the runs that were to get it are looked up again.

        A request may have arrived, and only its answer was lost.
        """
        for key in self._used:
            self._runs.pop(key, None)
        self._doubtful |= self._used.keys()
        self._used.clear()

    def _found(self, key: RunKey) -> TrackedRun | None:
        if key.role != "trial" or key in self._doubtful:
            run = next(self._search_runs(key.tags, 1), None)
            return self._tracked(run, _content(run)) if run is not None else None
        if not self._are_listed:
            for run in self._search_runs({"kdsearch.role": "trial"}, _RUNS_PER_REQUEST):
                listed = RunKey("trial", int(run.data.tags["kdsearch.trial"]))
                if listed not in self._doubtful:
                    self._runs.setdefault(listed, self._tracked(run, None))
            self._are_listed = True
        return self._runs.get(key)

    def _search_runs(self, tags: Mapping[str, str], page_size: int) -> Iterator[Run]:
        wanted = {"kdsearch.search": self._search, **tags}
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], query, max_results=page_size, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _created(self, now: int, key: RunKey, name: str) -> TrackedRun:
        tags = {"kdsearch.search": self._search, **key.tags}
        if key.role == "search":
            self._are_listed = True  # its trials' runs come after it
        else:
            tags["mlflow.parentRunId"] = self.run(now, RunKey("search"), self._search).id
        run = self._client.create_run(
            self._experiment, start_time=now, run_name=name or None, tags=tags
        )
        return self._tracked(run, _Content())

    def _tracked(self, run: Run, content: _Content | None) -> TrackedRun:
        return TrackedRun(self._client, self._experiment, run.info.run_id, content)
