"""What every benchmark says: what it measures now, each row at once, and the file that keeps them.

Progress goes to stderr, rows and tables to stdout. The file is written anew with every row, so that
a run that is cut off leaves what it had.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.table import Table

from kdcore.networks.measurement import device_name

FOLDER = Path("runs/bench")

_PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow")

# As PyTorch calls them, the fastest first: what decides how fast each number format is.
_INSTRUCTIONS = ("amx_bf16", "amx_fp16", "avx512_bf16", "avx512_fp16", "avx512_f", "avx2")
_INSTRUCTIONS_OF_ARM = ("sme", "sve_bf16", "sve", "bf16", "neon")

# oneDNN's own limit to them, by which a processor pretends to be less.
_LIMIT = "ONEDNN_MAX_CPU_ISA"

# After Ctrl-C a process ends what it started, Ray say; then it is ended.
_SECONDS_TO_END = 60


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Machine and versions; asked before anything is measured, because it names the load."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": device_name(device),
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "memory_gib": round(memory / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        **_versions(),
    }


def processor() -> str:
    """The processor's model, what it computes with, and its limit where one is set."""
    known = torch.cpu.get_capabilities()
    words = [name for name in (*_INSTRUCTIONS, *_INSTRUCTIONS_OF_ARM) if known.get(name)]
    if _LIMIT in os.environ:
        words.append(f"{_LIMIT}={os.environ[_LIMIT]}")
    return f"{device_name(torch.device('cpu'))} ({' '.join(words)})"


def _versions() -> dict[str, str]:
    """Of what is installed: kdcore alone runs without the others."""
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


class Benchmark:
    """A benchmark that runs. As a context manager it ends, also at Ctrl-C, with a word on its file.

    Args:
        name: of the benchmark, and of its file `runs/bench/NAME.json`.
        device: where it computes.
        threads: of the CPU.
        facts: what holds for all rows.
    """

    def __init__(self, name: str, device: torch.device, threads: int, **facts: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        self.facts = facts
        self._machine = machine(device, threads)
        self._path = FOLDER / f"{name}.json"
        self._started = time.monotonic()
        self._finished = False
        print(f"{name}: {_words(self._machine)}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is KeyboardInterrupt:
            kept = f"{len(self.rows)} rows are in {self._path}" if self.rows else "it had no row"
            print(f"interrupted; {kept}", file=sys.stderr)
            raise SystemExit(130) from None
        if kind is None:
            self._finished = True
            self._write()
            print(f"written to {self._path}", flush=True)

    def doing(self, what: str) -> None:
        """Says what is measured now."""
        print(f"[{time.monotonic() - self._started:4.0f} s] {what}", file=sys.stderr, flush=True)

    def add(self, *rows: Mapping[str, Any], shown: str | None = None) -> None:
        """Prints new figures, and writes the file.

        Args:
            rows: one mapping a row.
            shown: the line for all of them; none: a line each, with what is a plain number or text.
        """
        self.rows += map(dict, rows)
        self._write()
        for line in map(_words, rows) if shown is None else (shown,):
            print(line, flush=True)

    def table(self, *columns: str, title: str, **style: Any) -> Table:
        """A table that says on which processor it was measured."""
        where = self._machine["processor"]
        if self._machine["device"] not in where:
            where = f"{self._machine['device']}, {where}"
        return Table(*columns, title=f"{title}\n{where}", title_justify="left", **style)

    def shown(self, *, title: str, decimals: int) -> None:
        """Prints all rows as they are, in a table."""
        table = self.table(*self.rows[0], title=title)
        for row in self.rows:
            table.add_row(
                *(
                    f"{value:.{decimals}f}" if isinstance(value, float) else str(value)
                    for value in row.values()
                )
            )
        Console(width=160).print(table)

    def _write(self) -> None:
        """The whole file or none, for whoever reads it meanwhile."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": self._machine,
            "finished": self._finished,
            **self.facts,
            "rows": self.rows,
        }
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1, default=str) + "\n")
        partial.replace(self._path)


def _words(row: Mapping[str, Any]) -> str:
    """A row's numbers and texts in a line; lists and tables are in the file."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if isinstance(value, (str, int, float))
    )


def figures_of(command: Sequence[str]) -> dict[str, Any]:
    """What a process of its own measures: it prints a JSON object, and its progress in other lines.

    Ctrl-C reaches it once, through this process, which waits until it has ended what it started.
    """
    figures: dict[str, Any] = {}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    figures = json.loads(line)
                else:
                    print(line, end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=_SECONDS_TO_END)
            finally:
                process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return figures
