"""What this machine has: cores, GPUs, memory."""

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """What trials can use.

    Args:
        cores: that this process may use.
        memory_bytes: of the machine, half of which trials may take.
        gpus: number of them.
        gpu: what the first one is called; empty without one.
    """

    cores: int
    memory_bytes: int
    gpus: int = 0
    gpu: str = ""

    def __str__(self) -> str:
        words = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        words += f", {self.memory_bytes / 2**30:.0f} GiB of memory"
        return words + (f", {self.gpus} x {self.gpu}" if self.gpus else ", no GPU")


def this_machine() -> Machine:
    """The one that this process runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = torch.cuda.device_count()
    return Machine(cores or 1, memory, gpus, torch.cuda.get_device_name(0) if gpus else "")
