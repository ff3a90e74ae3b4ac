"""What `kdsearch submit` refuses before anything is sent."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from search.cli import remote
from search.cli.app import main
from search.cluster import jobs
from search.cluster.jobs import JobServer

TASK: dict[str, Any] = {
    "data": {"name": "digits"},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 1}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 1},
    "search": {"trials": 2},
}


@pytest.fixture(autouse=True)
def _in_a_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.delenv("KDSEARCH_STORAGE", raising=False)


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["kdsearch", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err.splitlines()


def test_all_mistakes_of_the_experiment_come_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistakes = ("--set", "search.trials=0", "--set", "student=x")
    lines = refused(capsys, monkeypatch, "submit", "task.yaml", *mistakes)
    assert [line.split(": ")[1] for line in lines] == ["student", "search.trials"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--storage is missing; name a URI like s3://bucket/folder"),
        (
            ["--storage", "/shared"],
            "no answer from a job server at http://127.0.0.1:1: [Errno 111]",
        ),
        (
            ["--storage", "/shared", "--address", "127.0.0.1:6379"],
            "--address is '127.0.0.1:6379', but must be that of a job server, like http://",
        ),
    ],
)
def test_a_place_that_is_none_is_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(remote, "_TUNNEL_SECONDS", 0.0)
    (line,) = refused(capsys, monkeypatch, "submit", "task.yaml", *arguments)
    assert line.startswith(f"kdsearch: {message}")


def test_a_tunnel_that_is_being_opened_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def opened(place: tuple[str, int], timeout: float) -> socket.socket:
        tried.append(clock.now)
        if clock.now < 3:
            raise ConnectionRefusedError
        return socket.socket()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(jobs, "time", clock)
    monkeypatch.setattr(jobs.socket, "create_connection", opened)
    jobs._knock("127.0.0.1", 8265, patience=5)
    assert tried[-1] == 3
    clock.now, tried[:] = 0.0, []
    with pytest.raises(ConnectionRefusedError):
        jobs._knock("127.0.0.1", 8265, patience=2)
    assert tried[-1] == 2


def test_a_search_is_resumed_with_all_that_its_user_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []
    server = JobServer.__new__(JobServer)
    monkeypatch.setattr(server, "jobs", list)
    monkeypatch.setattr(server, "_start", lambda *job: started.append(job[2]))
    changes = ["search.hours=4", "resources={cpus: 2, gpus: 0}"]
    server.resume("task-1", storage="s3://bucket/x", more_trials=3, overrides=changes)
    assert started == [
        "resume task-1 --more-trials 3 --set search.hours=4 --set 'resources={cpus: 2, gpus: 0}'"
    ]
