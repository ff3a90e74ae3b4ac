"""The tracking server of a cluster's head: real PostgreSQL, real passwords."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.ray_cluster import ROOT, free_port

# PostgreSQL refuses to run as root, so root takes the name of another user for it.
_AS_A_USER = ["unshare", "--user", "--map-user=postgres", "--map-group=postgres"]


@dataclass(frozen=True)
class Server:
    """A running server: where it is, and the home of the user who started it."""

    url: str
    home: Path

    def status(self, path: str, **headers: str) -> int:
        """What the server answers."""
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers)):
                return 200
        except urllib.error.HTTPError as error:
            return error.code

    @property
    def password(self) -> str:
        return (self.home / ".mlflow/credentials").read_text().split()[-1]


def start(home: Path, port: int) -> None:
    _run(home, port, str(home / "artifacts"))


def stop(home: Path) -> None:
    _run(home, 0, "--stop")


def _run(home: Path, port: int, argument: str) -> None:
    user = _AS_A_USER if os.getuid() == 0 else []
    environment = os.environ | {
        "HOME": str(home),
        "MLFLOW_PORT": str(port),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    script = str(ROOT / "experiments/clusters/tracking_server.sh")
    command = [*user, "bash", script, argument]
    subprocess.run(command, env=environment, check=True, timeout=180)


@contextmanager
def running_server(home: Path) -> Iterator[Server]:
    """A server that was started by the user with this home, and ends with the block."""
    port = free_port()
    try:
        start(home, port)
        yield Server(f"http://127.0.0.1:{port}", home)
    finally:  # also where the start was cut off, and only one of the two is there
        mlflow, postgresql = home / ".kdsearch/mlflow.pid", home / ".kdsearch/postgresql"
        if mlflow.exists():
            os.killpg(int(mlflow.read_text()), signal.SIGTERM)
        if (postmaster := postgresql / "postmaster.pid").exists():
            os.kill(int(postmaster.read_text().split()[0]), signal.SIGINT)
