"""What every benchmark says beside its figures, and the file that keeps them."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kdcore.measure import device_name

FOLDER = Path("runs/bench")

_PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Machine and versions; asked before anything is measured, because it names the load."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": device_name(device),
        "processor": device_name(torch.device("cpu")),
        "cores": cores(),
        "threads": threads,
        "memory_gib": round(memory / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        **_versions(),
    }


def _versions() -> dict[str, str]:
    """Of what is installed: kdcore alone runs without the others."""
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def publish(
    name: str, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **facts: Any
) -> None:
    """Prints the machine and writes `runs/bench/NAME.json`.

    Args:
        name: of the benchmark.
        machine: what `machine` gave.
        rows: the figures, one mapping a row.
        facts: what holds for all rows.
    """
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    content = {"machine": dict(machine), **facts, "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")
