"""The command `kdsearch` as its user runs it, without the seconds of its imports: a process that
has imported everything forks for each."""

import atexit
import io
import multiprocessing
import os
import runpy
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "search.cli.app",
        "search.session.launch",
        "search.cluster.jobs",
        "search.export.export",
        "search.tracking.mlflow_writer",
    ]
)
# Ray asks for tokens or does not, as the environment says when it is imported: some commands go to
# a cluster that does, so all have one.
_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

# The start of a script: its trials save a checkpoint after each epoch, not every few seconds.
EAGER = """
from search.session import session

def eager(point, **settings):
    from search.session import trial

    trial._CHECKPOINT_SECONDS = 0
    trial.run_trial(point, **settings)

session.run_trial = eager
"""

# Seconds until something that must happen is taken to be missing: a slow, busy machine needs many.
PATIENCE = 1200.0

_STARTED: list["Command"] = []


def forget_the_user() -> None:
    """Takes the cluster, storage and server of whoever runs the tests out of the environment."""
    for name in [*os.environ]:
        if name.startswith(("RAY_", "KDSEARCH_")) or name == "MLFLOW_TRACKING_URI":
            del os.environ[name]


@cache
def _import_everything() -> None:
    """Starts the process that forks for each command."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        forkserver.ensure_running()


class Command:
    """A command that runs.

    Args:
        folder: where its user is.
        arguments: what follows `kdsearch`; or a script of Python that runs the command, and what
            follows that.
        variables: of the environment, beside this process's.

    Attributes:
        said: the folder with what it prints.
    """

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.args = arguments
        self.said = Path(tempfile.mkdtemp(prefix="kdsearch-"))
        _import_everything()
        self._process = _CONTEXT.Process(
            target=_run,
            args=(
                folder,
                arguments,
                os.environ | ({} if "HOME" in variables else _TOKEN) | variables,
                self.said,
            ),
        )
        self._process.start()
        _STARTED.append(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def output(self) -> bytes:
        """What it has printed."""
        return self._read("stdout")

    @property
    def stdout(self) -> str:
        return self.output.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self._read("stderr").decode(errors="replace")

    def is_running(self) -> bool:
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; nothing where it has ended."""
        if self.is_running():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> "subprocess.CompletedProcess[str]":
        """Waits for its end."""
        self._process.join(seconds)
        if self.is_running():
            self.send(signal.SIGKILL)
            raise TimeoutError(f"{self.args} did not end:\n{self.stdout}{self.stderr}")
        code = self._process.exitcode
        assert code is not None
        return subprocess.CompletedProcess(self.args, code, self.stdout, self.stderr)

    def wait_until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Waits for something that must happen before its end."""

        def happened() -> bool:
            running = self.is_running()
            if condition():
                return True
            assert running, f"{self.args} has ended:\n{self.stdout}{self.stderr}"
            return False

        try:
            wait_until(happened, seconds)
        except AssertionError:
            self.send(signal.SIGKILL)
            raise

    def _read(self, name: str) -> bytes:
        path = self.said / name
        return path.read_bytes() if path.exists() else b""


def kdsearch(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end."""
    return Command(folder, *arguments, **variables).wait()


def succeeded(folder: Path, *arguments: str, **variables: str) -> str:
    """What a command prints, which must succeed."""
    done = kdsearch(folder, *arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.2)


def _run(folder: Path, arguments: tuple[str, ...], variables: dict[str, str], said: Path) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(variables)
    import ray

    # Else all commands would draw the same random ids from Ray, and meet in one cluster.
    for _ in range(os.getpid() % 10_000):
        ray.ObjectRef.from_random()
    for number, name in enumerate(("stdout", "stderr"), start=1):
        file = os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
        text = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True)
        setattr(sys, name, text)
    if arguments[0].endswith(".py"):
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        from search.cli.app import main

        sys.argv = ["kdsearch", *arguments]
        main()


@atexit.register
def _end_all() -> None:
    """Ends what a test that failed has left; else this process would wait for it."""
    for command in _STARTED:
        command.send(signal.SIGKILL)
        shutil.rmtree(command.said, ignore_errors=True)
