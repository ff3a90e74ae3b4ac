"""What machines do: this one, those behind a job server, and the nodes of Slurm's jobs."""

import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MachineLoad:
    """A machine, and how busy it is; none is what nobody tells.

    Args:
        name: of the machine.
        where: whose it is, in words.
        trials: what trials and jobs occupy of it, in words.
        load: processes that wanted a core, an average over the last minute.
        cores: number of them.
        memory_used: bytes.
        memory: bytes.
        gpus: each in words.
    """

    name: str
    where: str
    trials: str = ""
    load: float | None = None
    cores: int | None = None
    memory_used: float | None = None
    memory: float | None = None
    gpus: tuple[str, ...] = ()


def this_machine() -> MachineLoad:
    """The machine that asks."""
    known: dict[str, float] = {}
    if (file := Path("/proc/meminfo")).exists():
        for line in file.read_text().splitlines():
            key, _, value = line.partition(":")
            known[key] = float(value.split()[0]) * 1024
    memory, free = known.get("MemTotal"), known.get("MemAvailable")
    return MachineLoad(
        socket.gethostname(),
        "here",
        load=os.getloadavg()[0],
        cores=os.cpu_count(),
        memory_used=None if memory is None or free is None else memory - free,
        memory=memory,
        gpus=_gpus(),
    )


def machines_of_ray(
    nodes: list[dict[str, Any]], occupied: dict[str, str], where: str
) -> list[MachineLoad]:
    """The machines of a cluster that are alive.

    Args:
        nodes: as the dashboard's summary describes them; one that has just joined without much.
        occupied: by a node's id, how much trials have of each resource, in Ray's lines.
        where: whose they are.
    """
    found = []
    for node in nodes:
        raylet = node.get("raylet", {})
        if raylet.get("state") != "ALIVE":
            continue
        lines = occupied.get(raylet.get("nodeId", ""), "")
        shares = re.findall(r"^([\d.]+)/([\d.]+) (CPU|GPU)\b", lines, re.MULTILINE)
        memory, available = [*node.get("mem", ()), None, None][:2]
        found.append(
            MachineLoad(
                node.get("hostname", raylet.get("nodeName", "")),
                where,
                trials=", ".join(
                    f"{float(n):g} of {float(of):g} {what}s" for n, of, what in shares
                ),
                load=node["loadAvg"][0][0] if "loadAvg" in node else None,
                cores=node["cpus"][0] if "cpus" in node else None,
                memory_used=None if memory is None else memory - available,
                memory=memory,
                gpus=tuple(
                    _gpu(gpu.get("utilizationGpu"), gpu["memoryUsed"], gpu["memoryTotal"])
                    for gpu in node.get("gpus", ())
                ),
            )
        )
    return found


def _gpus() -> tuple[str, ...]:
    """This machine's GPUs, where NVIDIA's command tells of them."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = "--query-gpu=utilization.gpu,memory.used,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        lines = [line.split(",") for line in done.stdout.splitlines()]
        return tuple(_gpu(*(float(number) for number in line)) for line in lines)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return ()


def _gpu(busy: float | None, used: float, memory: float) -> str:
    """A GPU in words; its memory is in MiB."""
    busy_words = "" if busy is None else f"{busy:g} %, "
    return f"{busy_words}{used / 1024:.1f} of {memory / 1024:.0f} GiB"
