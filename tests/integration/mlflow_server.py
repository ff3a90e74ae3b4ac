"""An MLflow server of the tests, which may go away and come back."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.integration.commands import wait_until

# Nothing here needs MLflow's own runner of jobs, which is eight processes more.
ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def start_server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """A server that answers; its store is in the folder."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def answers() -> bool:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return True
        except OSError:
            return False

    wait_until(answers)
    return process


def stop_server(process: "subprocess.Popen[bytes]") -> None:
    """Kills a server of ours with the processes that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
