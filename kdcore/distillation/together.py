"""Distils one student with several processes of this machine."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch

from kdcore.distillation.config import TrialConfig
from kdcore.distillation.distill import distill
from kdcore.errors import ConfigError
from kdcore.execution.workers import joined, open_store, reach_store
from kdcore.training.evaluation import default_device
from kdcore.training.report import EpochReport

_HERE = "127.0.0.1"


def distill_together(
    config: TrialConfig, processes: int, *, device: torch.device | None = None, **arguments: Any
) -> Iterator[EpochReport]:
    """As `distill`, by several processes that divide the images of each batch.

    Args:
        config: what to do.
        processes: the number of them, this one included; each has a GPU, or as many threads as this
            one.
        device: `cpu`, or `cuda` for a GPU each; by default the GPUs, if there are some.
        arguments: others of `distill`.

    Raises:
        ConfigError: there are more processes than GPUs; and as `distill`.
    """
    kind = (device or default_device()).type
    if processes == 1:
        yield from distill(config, device=torch.device(kind), **arguments)
        return
    if kind == "cuda" and processes > torch.cuda.device_count():
        raise ConfigError(
            f"{processes} workers need a GPU each, but there are {torch.cuda.device_count()}; "
            f"use fewer, or the CPU"
        )
    store, port = open_store(_HERE)
    # A process that has computed cannot be forked.
    start = multiprocessing.get_context("spawn").Process
    how = kind, torch.get_num_threads(), config.model_dump_json(), arguments
    others = [
        start(target=_work, args=(rank, processes, port, *how), daemon=True)
        for rank in range(1, processes)
    ]
    for other in others:
        other.start()
    try:
        own = _device(kind, 0)
        with joined(0, processes, store, own) as workers:
            yield from distill(config, device=own, workers=workers, **arguments)
    finally:
        for other in others:
            other.terminate()
            other.join()


def _device(kind: str, rank: int) -> torch.device:
    return torch.device(kind, rank) if kind == "cuda" else torch.device(kind)


def _work(
    rank: int,
    processes: int,
    port: int,
    kind: str,
    threads: int,
    config: str,
    arguments: dict[str, Any],
) -> None:
    """What the processes after the first do."""
    torch.set_num_threads(threads)
    store, device = reach_store(_HERE, port), _device(kind, rank)
    with joined(rank, processes, store, device) as workers:
        trial = TrialConfig.model_validate_json(config)
        for _ in distill(trial, device=device, workers=workers, **arguments):
            pass
