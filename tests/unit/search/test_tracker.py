"""What MLflow gets of a search, also from a queue that an earlier version left, and its store."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import Engine, event

from kdcore.data.image_data import ImageData
from kdcore.training.report import EpochReport
from search.cli.ui import update_statistics
from search.errors import StorageError, TrackingError
from search.leaderboard.ranking import rank
from search.record.live_record import LiveRecord
from search.record.record import METRIC, ConfirmationRun
from search.tracking.mlflow_writer import MlflowWriter, save_runs_table
from search.tracking.tracker import Tracker
from tests.synthetic import by_balanced_accuracy, made_up_search


@pytest.fixture(autouse=True)
def hurry() -> Iterator[None]:
    """Stores do not wait for the disk."""

    def connected(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)


def test_each_run_of_a_confirmation_is_a_child_with_its_curve_and_true_state(
    digits: ImageData, tmp_path: Path
) -> None:
    record = made_up_search(3).model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/m.db"})
    reports = [
        EpochReport(
            epoch=epoch,
            epochs=2,
            train_loss=1.0,
            train_terms={"cross_entropy": 1.0},
            train_accuracy=0.5,
            heldout_accuracy=0.5 + epoch / 10,
            heldout_loss=1.0,
            best_heldout_accuracy=0.5 + epoch / 10,
            best_epoch=epoch,
            learning_rate=0.1,
            epoch_seconds=1.0,
        )
        for epoch in (1, 2)
    ]
    ended = ConfirmationRun(seed=1, heldout_accuracy=0.7, test_accuracy=0.66)
    failed = ConfirmationRun(seed=2, reason="not finite")
    ids = {}
    for _ in range(2):  # a second confirmation finds the runs of the first
        tracker = Tracker(
            record.tracking_uri, tmp_path / "artifacts", tmp_path / "x.jsonl", record, digits
        )
        tracker.open()
        tracker.start_search(record, "name: made-up\n", {})
        tracker.log_confirmation("1-seed1", "kd", 1, {"seed": "1"}, reports, ended)
        tracker.log_confirmation("1-seed2", "kd", 1, {"seed": "2"}, [], failed)
        assert tracker.close() == 0
        ids = tracker.ids
    client = MlflowClient(record.tracking_uri)
    experiment = ids["mlflow_experiment_id"]
    runs = client.search_runs([experiment], "tags.`kdsearch.role` = 'confirmation'")
    known = {run.data.tags["kdsearch.confirmation"]: run for run in runs}
    assert sorted(known) == ["1-seed1", "1-seed2"]
    assert len(runs) == 2
    good, bad = known["1-seed1"], known["1-seed2"]
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert good.data.tags["mlflow.parentRunId"] == ids["mlflow_run_id"]
    assert good.data.metrics["test_accuracy"] == 0.66
    history = client.get_metric_history(good.info.run_id, "heldout_accuracy")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.6), (2, 0.7)]
    assert bad.data.tags["kdsearch.reason"] == "not finite"


Entry = dict[str, Any]

_DATASET = {"name": "digits", "digest": "d", "source_type": "local", "source": "{}"}


def entries_of(*calls: tuple[str, dict[str, Any]]) -> list[Entry]:
    """Calls as they are in a queue."""
    return [
        {"entry": number, "call": call, "time": 1000 * number, "arguments": arguments}
        for number, (call, arguments) in enumerate(calls, start=1)
    ]


def start() -> tuple[str, dict[str, Any]]:
    params = {"trials": "3"}
    return "start_search", {"params": params, "experiment_yaml": "name: x\n", "dataset": _DATASET}


def trial_of(number: int, epochs: int) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a trial that finishes."""
    params = {"objective": "kd", "kd.weight": "0.5"}
    costs = {"parameters": 77_754.0, "latency_ms": 1.5}
    report: dict[str, Any] = dict.fromkeys(
        ("heldout_accuracy", "best_heldout_accuracy", "train_loss", "gain"), 0.5
    )
    report |= {"epochs": epochs, "train_terms": {"kd": 1.0}, "teacher": "", "parts": 1}
    report |= {"teacher_seconds_saved": 0.0, "seconds_by_part": {"decoding": 0.25}}
    name = f"{number:03d} kd"
    opened = {"number": number, "name": name, "params": params, "costs": costs}
    student = {
        "name": "timm/resnet18 (in1k-1.0.pth)",
        "params": {"objective": "kd"},
        "tags": {"kdsearch.search": "made-up-1"},
        "step": epochs,
        "metrics": {"best_heldout_accuracy": 0.5},
    }
    ended = {"number": number, "tags": {"state": "finished"}, "status": "FINISHED"}
    return [
        ("start_trial", opened | {"dataset": _DATASET}),
        *(
            ("epoch", {"number": number, "report": report | {"epoch": epoch}})
            for epoch in range(1, epochs + 1)
        ),
        ("end_trial", ended | {"student": student}),
        ("cost", {"costs": {"hours": 0.5 * number}, "step": number}),
    ]


class Recording(MlflowClient):
    """A client of which one request is cut off: before it arrives, or before its answer does."""

    requests: ClassVar[list[str]] = []
    cut_off: ClassVar[int | None] = None
    arrives: ClassVar[bool] = False


def recording(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    """The writer's client, which counts its requests from now on."""

    def request(name: str) -> Callable[..., Any]:
        original = getattr(MlflowClient, name)

        def asked(self: Recording, *arguments: Any, **named: Any) -> Any:
            if name == "log_batch" and not any(arguments[1:]):
                return None  # the client sends nothing
            Recording.requests.append(name)
            cut_off = Recording.cut_off == len(Recording.requests)
            if cut_off and not Recording.arrives:
                raise ConnectionError(name)
            answer = original(self, *arguments, **named)
            if cut_off:
                raise ConnectionError(name)
            return answer

        return asked

    for name in (
        *("search_runs", "get_run", "create_run", "update_run", "set_terminated", "log_batch"),
        *("log_inputs", "log_outputs", "create_logged_model", "finalize_logged_model"),
        *("get_metric_history", "set_experiment_tag"),
    ):
        monkeypatch.setattr(Recording, name, request(name), raising=False)
    monkeypatch.setattr("search.tracking.mlflow_writer.MlflowClient", Recording)
    monkeypatch.setattr(Recording, "requests", [])
    monkeypatch.setattr(Recording, "cut_off", None)
    return Recording


def has_whole_trials(uri: str, search: str, trials: int) -> None:
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'task'")
    runs = client.search_runs([experiment.experiment_id], f"tags.`kdsearch.search` = '{search}'")
    roles = [run.data.tags["kdsearch.role"] for run in runs]
    assert sorted(roles) == ["search", *["trial"] * trials]
    for run in runs:
        if run.data.tags["kdsearch.role"] == "search":
            assert run.data.metrics["hours"] == 0.5 * trials
            continue
        for metric in ("heldout_accuracy", "epochs_done", "train_kd"):
            history = client.get_metric_history(run.info.run_id, metric)
            assert [entry.step for entry in history] == [1, 2, 3]
        assert run.data.params == {"objective": "kd", "kd.weight": "0.5"}
        assert run.data.metrics["parameters"] == 77_754
        assert run.data.tags["state"] == "finished"
        assert run.info.status == "FINISHED"
        assert len(run.inputs.dataset_inputs) == 1
        assert [model.step for model in run.outputs.model_outputs] == [3]


def test_a_trial_takes_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/m.db"
    client = recording(monkeypatch)
    writer = MlflowWriter(uri, tmp_path, "task", "search")
    entries = entries_of(start(), *trial_of(1, 3), *trial_of(2, 3))
    writer.deliver(entries[:1])
    client.requests.clear()
    writer.deliver(entries[1:])
    assert sorted(client.requests) == sorted(
        [
            *("create_run", "log_batch", "log_inputs", "create_logged_model") * 2,
            *("finalize_logged_model", "log_outputs", "set_terminated") * 2,
            "log_batch",  # the newest cost, for the search
        ]
    )
    has_whole_trials(uri, "search", 2)


def test_a_resumed_search_lists_its_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/m.db"
    trials = [trial_of(number, 3) for number in (1, 2, 3)]
    first = entries_of(start(), *trials[0][:3], trials[1][0], trials[2][0])
    MlflowWriter(uri, tmp_path, "task", "search").deliver(first)
    client = recording(monkeypatch)
    monkeypatch.setattr("search.tracking.tracked_runs._RUNS_PER_REQUEST", 2)
    resumed = MlflowWriter(uri, tmp_path, "task", "search")
    for entry in entries_of(start(), *(call for trial in trials for call in trial)):
        resumed.deliver([entry])
    # The search's run, and the trials' on two pages.
    assert client.requests.count("search_runs") == 3
    assert client.requests.count("create_run") == 0
    has_whole_trials(uri, "search", 3)


@pytest.mark.parametrize("arrives", [False, True])
def test_whatever_request_is_cut_off_nothing_is_lost_or_there_twice(
    arrives: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/m.db"
    client = recording(monkeypatch)
    monkeypatch.setattr(client, "arrives", arrives)
    entries = entries_of(start(), *trial_of(1, 3))
    cut_off = 0
    while client.cut_off is None or len(client.requests) > cut_off:
        cut_off += 1
        client.requests.clear()
        monkeypatch.setattr(client, "cut_off", cut_off)
        writer = MlflowWriter(uri, tmp_path, "task", f"search-{cut_off}")
        for batch in (entries[:3], entries[3:]):
            with suppress(ConnectionError):
                writer.deliver(batch)
                continue
            writer.deliver(batch)
        has_whole_trials(uri, f"search-{cut_off}", 1)
    assert cut_off > 12


def test_a_queue_of_an_earlier_version_is_delivered(digits: ImageData, tmp_path: Path) -> None:
    record = made_up_search(3).model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/m.db"})
    started, epoch, ended, cost = trial_of(1, 1)
    ended[1]["student"] = {}
    entries = entries_of(
        start(),
        ("view", {"key": "mlflow.sharedViewState.made-up-1", "value": "{}"}),
        ("teacher", {"backbone": "resnet20", "reports": [], "metrics": {"heldout_accuracy": 0.9}}),
        started,
        epoch,
        ("gains", {"gains": [[1, 1, {"gain": 0.25}]]}),
        ended,
        cost,
        ("report", {"folder": str(tmp_path / "gone")}),
        ("end_search", {"metrics": {}, "tags": {"state": "finished"}, "status": "FINISHED"}),
    )
    queue = tmp_path / "mlflow.jsonl"
    queue.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    tracker = Tracker(record.tracking_uri, tmp_path / "artifacts", queue, record, digits)
    tracker.open()
    assert tracker.close() == 0
    client = MlflowClient(record.tracking_uri)
    experiment = client.get_experiment(tracker.ids["mlflow_experiment_id"])
    assert experiment.tags["mlflow.sharedViewState.made-up-1"] == "{}"
    search = client.get_run(tracker.ids["mlflow_run_id"])
    assert search.data.metrics == {"teacher_heldout_accuracy": 0.9, "hours": 0.5}
    (run,) = client.search_runs([experiment.experiment_id], "tags.`kdsearch.role` = 'trial'")
    assert run.data.metrics["gain"] == 0.25
    assert run.data.metrics["epochs_done"] == 1
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "finished")


def queued(queue: Path) -> list[str]:
    return [json.loads(line)["call"] for line in queue.read_text().splitlines()]


def test_columns_and_gains_are_not_worked_out_anew_at_every_trial(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = made_up_search(12, methods=("none", "kd"))
    begun = record.model_copy(update={"trials": record.trials[:1]})
    queue = tmp_path / "mlflow.jsonl"
    tracker = Tracker("http://127.0.0.1:9", tmp_path, queue, record, digits)
    tracker.start_search(begun, "name: x\n", {})
    for _ in range(2):
        tracker.log_runs_table(LiveRecord(record))  # with other columns, but within ten seconds
        tracker.log_gains(record, "resnet8")
    assert queued(queue) == ["start_search", "view", "gains"]
    monkeypatch.setattr(tracker, "_runs_table_due", 0.0)
    tracker.log_runs_table(LiveRecord(record))
    assert queued(queue)[3:] == ["view"]
    tracker.end_search(begun)
    assert queued(queue)[4:] == ["view", "end_search"]
    tracker.close()


def test_accuracies_have_the_decimals_that_tell_results_apart(
    digits: ImageData, tmp_path: Path
) -> None:
    best = 1128 / 1150
    report = EpochReport(
        epoch=1,
        epochs=2,
        train_loss=1 / 3,
        train_terms={"cross_entropy": 1 / 3},
        train_accuracy=2 / 3,
        heldout_accuracy=best,
        heldout_loss=1 / 3,
        best_heldout_accuracy=best,
        best_epoch=1,
        learning_rate=0.1,
        epoch_seconds=1.0,
    )
    record = made_up_search(3)
    many: Any = range(64_000)
    shown = []
    for images in (digits, replace(digits, heldout=many)):
        queue = tmp_path / f"{len(images.heldout)}.jsonl"
        tracker = Tracker("http://127.0.0.1:9", tmp_path, queue, record, images)
        tracker.log_epoch(1, report, 1 / 30)
        tracker.close()
        shown.append(json.loads(queue.read_text())["arguments"]["report"])
    assert [each["best_heldout_accuracy"] for each in shown] == [0.9809, 0.98087]
    assert [each["gain"] for each in shown] == [0.0333, 0.03333]
    assert [each["heldout_loss"] for each in shown] == [1 / 3, 1 / 3]


def test_the_metric_that_ranks_stands_beside_the_accuracies(
    digits: ImageData, tmp_path: Path
) -> None:
    plain = made_up_search(12, methods=("none", "kd"), grace_epochs=None)
    for record, test_score in ((plain, None), (by_balanced_accuracy(plain), 0.7)):
        queue = tmp_path / f"{record.metric}.jsonl"
        tracker = Tracker("http://127.0.0.1:9", tmp_path, queue, record, digits)
        best, control = rank(record.trials)[0], record.control_of("resnet8")
        assert control is not None
        tracker.end_trial(best)
        run = ConfirmationRun(seed=1, test_accuracy=0.9, test_score=test_score)
        tracker.log_confirmation("1-seed1", "kd", 1, {}, [], run)
        tracker.end_search(record)
        tracker.close()
        entries = map(json.loads, queue.read_text().splitlines())
        found = {each["call"]: each["arguments"] for each in entries}
        student = {METRIC: best.heldout_accuracy}
        tested = {"test_accuracy": 0.9}
        search = {**student, "control_heldout_accuracy": control.heldout_accuracy}
        if record is not plain:
            student |= {"best_score": best.score}
            tested |= {"test_score": 0.7}
            search |= {"best_score": best.score, "control_best_score": control.score}
        assert found["end_trial"]["student"]["metrics"] == student
        assert found["confirmation"]["metrics"] == tested
        assert found["end_search"]["metrics"] == search


def test_nothing_is_delivered_before_the_tracker_is_opened(
    digits: ImageData, tmp_path: Path
) -> None:
    record = made_up_search(3)
    queue = tmp_path / "mlflow.jsonl"
    tracker = Tracker("http://127.0.0.1:9", tmp_path, queue, record, digits)
    tracker.log_cost(record, 0)
    assert tracker.close() == 1
    assert json.loads(queue.read_text())["call"] == "cost"


def test_a_server_that_is_away_and_a_folder_that_is_read_only_are_told(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = made_up_search(3).model_copy(update={"mlflow_experiment_id": "1"})
    with pytest.raises(TrackingError, match=r"^MLflow at http://127\.0\.0\.1:9: "):
        save_runs_table("http://127.0.0.1:9", record)
    (tmp_path / "file").write_text("")
    queue = tmp_path / "file" / "mlflow.jsonl"
    with pytest.raises(StorageError, match=r"cannot write .*mlflow\.jsonl"):
        Tracker("http://127.0.0.1:9", tmp_path, queue, record, digits)


def test_sqlite_can_sort_a_large_table(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    store = SqlAlchemyStore(uri, str(tmp_path))
    experiment = store.create_experiment("task")
    with closing(sqlite3.connect(path)) as filled, filled:
        for number in range(1000):
            filled.execute(
                "INSERT INTO runs (run_uuid, experiment_id, user_id, lifecycle_stage, status, "
                "start_time) VALUES (?, ?, 'unknown', 'active', 'FINISHED', 0)",
                (f"{number}", experiment),
            )
            filled.execute(
                "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
                "VALUES ('best_heldout_accuracy', ?, 0, 0, 0, ?)",
                (number / 1000, f"{number}"),
            )
    update_statistics(uri)
    store.engine.dispose()
    queries = []
    event.listen(
        store.engine,
        "before_cursor_execute",
        lambda connection, cursor, query, values, *_: queries.append((query, values)),
    )
    order = ["metrics.`best_heldout_accuracy` DESC"]
    best, *_ = store.search_runs([experiment], "", ViewType.ACTIVE_ONLY, 100, order)
    store.engine.dispose()
    assert best.info.run_id == "999"
    with closing(sqlite3.connect(path)) as read:
        plans = [
            step
            for query, values in queries
            if "LEFT OUTER JOIN" in query and "ORDER BY" in query
            for *_, step in read.execute(f"EXPLAIN QUERY PLAN {query}", values)
        ]
    # Each run's metric is looked up, not looked for among all runs' metrics.
    assert [step for step in plans if step.startswith("SEARCH anon_1")]
    assert not [step for step in plans if step.startswith("SCAN anon_1")]


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    update_statistics("http://127.0.0.1:9")
    update_statistics(f"sqlite:///{tmp_path}/none.db")
    assert not [*tmp_path.iterdir()]
