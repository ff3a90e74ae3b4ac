"""What a user types on a laptop, one of the machines that `hosts` makes."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.endurance.hosts import Host
from tests.integration.commands import PATIENCE, wait_until
from tests.integration.ray_cluster import ROOT

KDSEARCH = f"{sys.executable} -m search"


class Typed:
    """A command that goes on.

    Args:
        command: what is run.
        output: where it prints.
    """

    def __init__(self, command: list[str], output: Path) -> None:
        self._output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file)

    @property
    def said(self) -> str:
        return self._output.read_text()

    def until(self, words: str) -> None:
        """Waits until it has printed these words."""

        def has_printed() -> bool:
            ended = self._process.poll() is not None
            assert words in self.said or not ended, self.said
            return words in self.said

        wait_until(has_printed)

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Laptop:
    """A user's own machine, who is its root, and works in the repository.

    Args:
        host: the machine.
        output: folder for what goes on.
        variables: of its user's environment.
    """

    def __init__(self, host: Host, output: Path, variables: Mapping[str, str]) -> None:
        self._host, self._output = host, output
        self._started: list[Typed] = []
        self._user = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            **variables,
        }

    def typed(self, command: str, *, fails: bool = False) -> str:
        """What a command prints."""
        return self._host.run(*_shell(command), user="root", check=not fails, **self._user)

    def started(self, command: str, name: str) -> Typed:
        """A command that goes on."""
        line = self._host.command(*_shell(command), user="root", **self._user)
        self._started.append(Typed(line, self._output / name))
        return self._started[-1]

    def http_status(self, address: str, port: int) -> str:
        """What is answered without a token; 000 where nobody is, or no HTTP."""
        ask = "curl -s --http1.1 --max-time 60 --output /dev/null --write-out '%{http_code}'"
        return self.typed(f"{ask} http://{address}:{port}/", fails=True)

    def forwards_dashboard(self, file: str) -> None:
        """Has `ray dashboard` go on, and waits for it."""
        self.started(f"echo $$ > ~/dashboard.pid; exec ray dashboard {file}", "dashboard.txt")
        wait_until(lambda: self.http_status("127.0.0.1", 8265) != "000")

    def ends_dashboard(self) -> None:
        self.typed("kill -INT $(cat ~/dashboard.pid)")

    def close(self) -> None:
        """Ends what goes on."""
        for each in self._started:
            each.end()


def _shell(command: str) -> list[str]:
    return ["bash", "-c", f"cd {ROOT} && {command}"]
