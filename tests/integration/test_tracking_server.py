"""The tracking server of a cluster's head: real PostgreSQL, real passwords."""

import base64
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.ray_cluster import ROOT, free_port

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        "CI" not in os.environ
        and not (find_spec("psycopg") and find_spec("flask_wtf") and shutil.which("psql")),
        reason="needs PostgreSQL, and what kdsearch[server] installs",
    ),
]

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
    user = _AS_A_USER if os.getuid() == 0 else []
    environment = os.environ | {
        "HOME": str(home),
        "MLFLOW_PORT": str(port),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        *user,
        "bash",
        str(ROOT / "experiments/clusters/tracking_server.sh"),
        str(home / "artifacts"),
    ]
    subprocess.run(command, env=environment, check=True, timeout=180)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home, port = tmp_path_factory.mktemp("head"), free_port()
    start(home, port)
    yield Server(f"http://127.0.0.1:{port}", home)
    os.killpg(int((home / ".kdsearch/mlflow.pid").read_text()), signal.SIGTERM)
    postmaster = (home / ".kdsearch/postgresql/postmaster.pid").read_text().split()[0]
    os.kill(int(postmaster), signal.SIGINT)


def test_only_the_password_and_a_known_name_of_the_host_open_it(server: Server) -> None:
    experiments = "/api/2.0/mlflow/experiments/search?max_results=1"

    def basic(password: str) -> str:
        return "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()

    assert server.status(experiments) == 401
    assert server.status("/") == 401
    assert server.status(experiments, Authorization=basic("guess")) == 401
    assert server.status(experiments, Authorization=basic(server.password)) == 200
    foreign = {"Authorization": basic(server.password), "Host": "evil.example"}
    assert server.status(experiments, **foreign) == 403


def test_clients_on_the_head_find_the_password(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(server.home))
    client = MlflowClient(server.url)
    run = client.create_run(client.create_experiment("digits")).info.run_id
    client.log_metric(run, "heldout_accuracy", 0.5, step=1)
    client.log_text(run, "name: digits", "experiment.yaml")
    assert client.get_run(run).data.metrics == {"heldout_accuracy": 0.5}
    assert [file.path for file in client.list_artifacts(run)] == ["experiment.yaml"]
    assert list((server.home / "artifacts").rglob("experiment.yaml"))


def test_secrets_are_read_by_their_user_alone(server: Server) -> None:
    for file in (".mlflow/credentials", ".kdsearch/basic_auth.ini"):
        assert (server.home / file).stat().st_mode & 0o077 == 0


def test_a_second_start_changes_nothing(server: Server) -> None:
    def known() -> tuple[str, str]:
        return server.password, (server.home / ".kdsearch/mlflow.pid").read_text()

    before = known()
    start(server.home, int(server.url.rpartition(":")[2]))
    assert known() == before
