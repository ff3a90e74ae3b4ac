"""The tracking server of a cluster's head: real PostgreSQL, real passwords."""

import base64
import os
import shutil
import urllib.error
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from mlflow import MlflowClient

from tests.benchmarks.tracking import measure
from tests.integration.tracking_server import Server, running_server, start, stop

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        "CI" not in os.environ
        and not (find_spec("psycopg") and find_spec("flask_wtf") and shutil.which("psql")),
        reason="needs Debian's postgresql, and what kdsearch[server] installs",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("head")) as server:
        yield server


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


def test_500_trials_of_searches_that_log_at_once_are_all_there(server: Server) -> None:
    row = measure(server.url, server.home, writers=4, trials=125, epochs=5)
    assert row["missing_epochs"] == 0


def test_stop_ends_both_servers_and_may_be_repeated(server: Server) -> None:
    for _ in range(2):
        stop(server.home)
        with pytest.raises(urllib.error.URLError):
            server.status("/health")
        assert not (server.home / ".kdsearch/postgresql/postmaster.pid").exists()
