"""A Ray cluster of real processes on this machine, with token authentication, and its user."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.integration.commands import Command, wait_until

ROOT = Path(__file__).parents[2]


class RayCluster:
    """A head on free ports, and the machines that join it.

    Args:
        folder: where its user works; also for the home and the logs.
        head_cpus: what the head has for trials.
        head_gpus: that it pretends to have.

    Attributes:
        address: of the cluster, for drivers.
        job_server: its URL.
        machines: the head and those that joined, each the first of its processes.
    """

    def __init__(self, folder: Path, *, head_cpus: int = 0, head_gpus: int = 0) -> None:
        self.folder = folder
        token = folder / "home" / ".ray" / "auth_token"
        token.parent.mkdir(parents=True)
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self._user = {"HOME": str(folder / "home")}
        self._environment = (
            os.environ
            | self._user
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "RAY_USAGE_STATS_ENABLED": "0",
                "OMP_NUM_THREADS": "1",
                "RAY_AUTH_MODE": "token",
                # A machine is lost after three silent seconds, not after a quarter of a minute.
                "RAY_health_check_period_ms": "1000",
                "RAY_health_check_failure_threshold": "3",
            }
        )
        port, dashboard = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.job_server = f"http://127.0.0.1:{dashboard}"
        # Sockets lie in it, and their paths must stay below 108 characters.
        self._ray_folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self.machines: list[subprocess.Popen[bytes]] = []
        self._start(
            *("--head", f"--port={port}", f"--dashboard-port={dashboard}"),
            *("--dashboard-host=127.0.0.1", f"--ray-client-server-port={free_port()}"),
            *(f"--temp-dir={self._ray_folder}", f"--num-cpus={head_cpus}"),
            f"--num-gpus={head_gpus}",
        )

    def add_machine(
        self, cpus: int = 1, without: Path | None = None, gpus: int = 0
    ) -> "subprocess.Popen[bytes]":
        """Joins a machine, and returns when it is there.

        Args:
            cpus: that it has for trials.
            without: a folder that it does not share, but has an empty one instead; only root can.
            gpus: that it pretends to have.
        """
        options = f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"
        return self._start(*options, without=without)

    def lose(self, machine: "subprocess.Popen[bytes]") -> None:
        """Kills all that runs on a machine at once, as if its plug were pulled."""
        self.machines.remove(machine)
        for pid in family(machine.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        machine.wait()

    def signal_trials(self, machine: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
        """Sends a signal to the processes that run trials on a machine."""
        for pid in processes_below(machine.pid, "ray::ImplicitFunc"):
            os.kill(pid, number)

    def close(self) -> None:
        for machine in reversed(self.machines.copy()):
            self.lose(machine)
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    def kdsearch(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command of the user, and waits for it."""
        return self.started(*arguments, **variables).wait()

    def started(self, *arguments: str, **variables: str) -> Command:
        """A command of the user that runs."""
        known = {"RAY_API_SERVER_ADDRESS": self.job_server, "RAY_AUTH_MODE": "token"}
        return Command(self.folder, *arguments, **self._user | known | variables)

    def _start(self, *options: str, without: Path | None = None) -> "subprocess.Popen[bytes]":
        log = self.folder / f"machine-{len(list(self.folder.glob('machine-*')))}.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += [f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]
        command += ["--object-store-memory=80000000"]
        if without is not None:
            covered = f"mount -t tmpfs none '{without}' && exec \"$@\""
            command = ["unshare", "--mount", "sh", "-c", covered, "sh", *command]
        with log.open("wb") as output:
            machine = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdout=output,
                stderr=output,
            )
        self.machines.append(machine)
        wait_until(lambda: b"Ray runtime started." in log.read_bytes())
        return machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # it has just ended
                found += map(int, children.read_text().split())
    return found


def processes_below(pid: int, words: str) -> list[int]:
    """Those that descend from a process and have these words in their command."""
    found = []
    for each in family(pid)[1:]:
        with suppress(OSError):  # it has just ended
            if words in Path(f"/proc/{each}/cmdline").read_text():
                found.append(each)
    return found
