"""The command that serves MLflow's pages."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.options import UI_PORT, StorageOption
from search.errors import SearchError, TrackingError

if TYPE_CHECKING:
    from search.record.record import SearchRecord


def ui(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of a search.")] = None,
    storage: StorageOption = "runs",
    port: Annotated[int, typer.Option(help="Port; another one if it is taken.")] = UI_PORT,
) -> None:
    """Serve MLflow's pages on this machine, and print the link to a search."""
    from search.record.files import read_record, search_names
    from search.record.storage import Storage, default_tracking_uri, local_home

    place = Storage(storage)
    known = search_names(place)
    if name is None and not known:
        raise SearchError(f"there is no search in {place.uri} yet; kdsearch launch makes one")
    record = read_record(place, name) if name is not None else None
    uri = record.tracking_uri if record is not None else default_tracking_uri(place)
    if uri.startswith("http"):
        _save_runs_table(uri, record)
        print(_links(uri, record))
        return
    port = _free_port(port)
    base = f"http://127.0.0.1:{port}"
    update_statistics(uri)
    log = local_home(place) / "logs" / "mlflow-ui.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Nothing here uses MLflow's jobs, and their runner takes eight more processes.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Else the server would survive SIGTERM, and in a script's background SIGINT is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with log.open("ab") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            import search.tracking.mlflow_writer  # noqa: F401  (seconds, while the server starts)

            _wait_until_up(base, server, log)
            _save_runs_table(base, record)
            print(
                f"{_links(base, record)}\nCtrl-C stops the server; it writes to {log}",
                flush=True,
            )
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            server.terminate()
            server.wait()


def _links(base: str, record: "SearchRecord | None") -> str:
    """Where MLflow's pages show a search: as a leaderboard, then with its summary and pictures."""
    from search.tracking.runs_table import leaderboard_link, report_link

    found = [leaderboard_link(base, record)]
    if record is not None and record.mlflow_run_id is not None:
        found.append(f"summary and pictures: {report_link(base, record)}")
    return "\n".join(found)


def _save_runs_table(uri: str, record: "SearchRecord | None") -> None:
    """Saves the table that the link opens, also for a search that was run without its server."""
    from search.tracking.mlflow_writer import save_runs_table

    if record is not None and record.mlflow_experiment_id is not None:
        try:
            save_runs_table(uri, record)
        except TrackingError as error:
            print(f"the leaderboard's columns are as they were: {error}", file=sys.stderr)


def update_statistics(uri: str) -> None:
    """Has SQLite count what is in a tracking store, by which it plans its queries.

    Without, it sorts a leaderboard of ten thousand trials in five seconds instead of a third of
    one. PostgreSQL does this by itself.
    """
    prefix, _, path = uri.partition(":///")
    # A busy store is read without them.
    with suppress(sqlite3.OperationalError):
        if prefix == "sqlite" and Path(path).exists():
            with closing(sqlite3.connect(path)) as store:
                # A sample of each index, so that a large store takes no longer.
                store.executescript("PRAGMA analysis_limit = 1000; ANALYZE")


def _free_port(wanted: int) -> int:
    """The wanted port of 127.0.0.1, or any free one where that is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(base: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise TrackingError(f"MLflow's server did not start; see {log}")
