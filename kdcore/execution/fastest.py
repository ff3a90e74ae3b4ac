"""The precision and memory layout in which a network is fastest on a device, by measurement."""

import copy
import ctypes
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn
from torch.nn.functional import cross_entropy

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.names import versioned
from kdcore.execution.execution import Execution, Precision
from kdcore.execution.workers import Workers
from kdcore.networks.classifier import Classifier
from kdcore.networks.cost import TrainingCost
from kdcore.networks.measurement import device_name, measure_training

FILE_NAME = "executions.json"

# Required gain over a plainer execution: half precision rounds, and measurements are noisy.
_WORTH = 0.95

# Executions slower than the fastest by this factor are not measured again.
_TOO_SLOW = 1.3
_REPETITIONS, _SECONDS = 4, 2.0

# Without instructions for a precision, a processor takes up to twenty times as long. An eighth of
# the images suffices to notice, and to rule out executions that are far behind.
_PROBED, _UNSUPPORTED, _FAR_BEHIND = 8, 4.0, 1.5

# Batch for networks that are not trained, whatever the batch of a trial: cached outputs serve
# trials with any batch size.
_INFERENCE_BATCH = 64


def keep_freed_memory() -> None:
    """Makes glibc hold on to up to 2 GiB of freed memory; does nothing with another C library.

    By default, blocks as large as a training step's maps go back to the system when they are freed.
    The next step then takes a page fault for each of their pages: a tenth of its time on two cores.
    """
    trim_threshold, mmap_threshold = -1, -3  # from malloc.h
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_threshold, 32 * 2**20)  # its maximum


def candidates(device: torch.device) -> list[Execution]:
    """All executions to measure on a device, plain ones first.

    Not filtered by instruction set: such a list would be outdated by the next processor.
    """
    half: Precision = "bfloat16"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        half = "float16"
    ways = [Execution("float32", last) for last in (False, True)]
    ways += [Execution(half, last) for last in (True, False)]
    if device.type == "cpu":
        ways += [Execution(precision, True, True) for precision in ("float32", half)]
    return ways


def fastest_execution(
    name: str,
    classifier: Classifier,
    image_size: tuple[int, int],
    device: torch.device,
    workspace: Path,
    *,
    batch_size: int | None = None,
    workers: Workers = Workers(),  # noqa: B008  (frozen)
) -> Execution:
    """Measures the candidates and stores the fastest in the workspace, where later calls find it.

    Args:
        name: of the network.
        classifier: the network; not modified.
        image_size: height and width in pixels.
        device: where to compute.
        workspace: results are stored in its file `executions.json`.
        batch_size: of training steps; None for inference.
        workers: the processes that compute so; the first one measures for all of them.
    """
    if workers.together:
        asked = name, classifier, image_size, device, workspace
        measured = workers.from_first(
            lambda: asdict(fastest_execution(*asked, batch_size=batch_size))
        )
        return Execution(**measured)
    channels, (height, width) = classifier.mean.shape[1], image_size
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    what = "asked" if batch_size is None else f"trained by {batch_size}"
    size = f"{channels}x{height}x{width}"
    where = f"{device_name(device)}, {threads}, torch {torch.__version__}"
    case = f"{versioned(name)}, {what}, {size}, {where}"
    path = workspace / FILE_NAME
    workspace.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        known = _known(path)
        if case not in known:
            images = torch.zeros(
                batch_size or _INFERENCE_BATCH, channels, height, width, device=device
            )
            known[case] = _measured(classifier, images, learns=batch_size is not None)
            partial = path.with_suffix(".partial")
            answers = {key: asdict(execution) for key, execution in known.items()}
            partial.write_text(json.dumps(answers, indent=1) + "\n")
            os.replace(partial, path)
    return known[case]


def fastest_training(
    network: Backbone,
    image_size: tuple[int, int],
    batch_size: int,
    device: torch.device,
    *,
    accelerated: bool = True,
) -> TrainingCost:
    """As `measure_training`, in about the execution that a training would choose; takes a moment.

    Args:
        network: not modified.
        image_size: height and width in pixels.
        batch_size: images in a step, at least 2.
        device: where to compute.
        accelerated: false: in a plain execution.
    """
    ways = [Execution()]
    if accelerated:
        steps = {
            way: _step(network, way, device, learns=True)
            for way in candidates(device)
            if not way.side_by_side
        }
        ways = _not_far_behind(
            steps, torch.zeros(2, network.in_channels, *image_size, device=device)
        )
    costs = []
    for way in ways:
        placed = copy.deepcopy(network)
        way.place(placed, device)
        with way.autocast(device):
            costs.append(measure_training(placed, image_size, batch_size, device))
    return min(costs, key=lambda cost: cost.seconds)


def _known(path: Path) -> dict[str, Execution]:
    try:
        answers = json.loads(path.read_text())
        return {key: Execution(**execution) for key, execution in answers.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # missing, damaged, or of another version: measured again


def _measured(classifier: Classifier, images: torch.Tensor, *, learns: bool) -> Execution:
    """The fastest execution, or a plainer one that is about as fast."""
    device = images.device
    if device.type == "cpu":
        keep_freed_memory()  # as in training
    steps = {way: _step(classifier, way, device, learns=learns) for way in candidates(device)}
    best = dict.fromkeys(steps, float("inf"))
    # Dropout must not advance the random state of the trial.
    with torch.random.fork_rng([device] if images.is_cuda else []):
        remaining = list(steps)
        if device.type == "cpu":
            remaining = _not_far_behind(steps, images[: max(2, len(images) // _PROBED)])
        else:
            for step in steps.values():
                step(images)  # loads libraries
        # In turns, so that a burst of other work slows all of them.
        started = time.perf_counter()
        for turn in range(_REPETITIONS):
            for way in remaining:
                best[way] = min(best[way], steps[way](images))
            if turn:  # in the first turn, libraries choose kernels
                limit = min(best.values()) * _TOO_SLOW
                remaining = [way for way in remaining if best[way] < limit]
            if len(remaining) == 1 or time.perf_counter() - started > _SECONDS:
                break
    chosen, *others = steps
    for way in others:
        if best[way] < best[chosen] * _WORTH:
            chosen = way
    return chosen


def _not_far_behind(
    steps: Mapping[Execution, Callable[[torch.Tensor], float]], images: torch.Tensor
) -> list[Execution]:
    """The executions that a small batch does not rule out."""
    best: dict[Execution, float] = {}
    unsupported: set[Precision] = set()
    for way, step in steps.items():
        if way.precision in unsupported:
            continue
        best[way] = step(images)
        if best[way] > _UNSUPPORTED * min(best.values()):
            unsupported.add(way.precision)
        else:
            best[way] = min(best[way], step(images))
    return [way for way, seconds in best.items() if seconds < _FAR_BEHIND * min(best.values())]


def _step(
    classifier: nn.Module, execution: Execution, device: torch.device, *, learns: bool
) -> Callable[[torch.Tensor], float]:
    """A function that runs a step on some images and returns its seconds."""
    network = copy.deepcopy(classifier).train(learns)
    execution.place(network, device)

    # Processor time on a CPU, which other processes do not add to.
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def seconds(images: torch.Tensor) -> float:
        started = clock()
        with execution.autocast(device), torch.set_grad_enabled(learns):
            logits = network(images)
        if learns:
            labels = torch.zeros(len(images), dtype=torch.int64, device=device)
            torch.autograd.backward(cross_entropy(logits.float(), labels))
        if images.is_cuda:
            torch.cuda.synchronize(device)
        return clock() - started

    return seconds
