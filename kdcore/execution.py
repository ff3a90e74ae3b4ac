"""In which precision and memory layout a network computes fastest on the device at hand."""

import copy
import ctypes
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn
from torch.nn.functional import cross_entropy

from kdcore.classifier import Classifier
from kdcore.measure import device_name
from kdcore.narrow_maps import NarrowConv2d

FILE_NAME = "executions.json"

# Another layout must gain as much to be worth another rounding.
_WORTH = 0.95
# What takes so many times as long as the fastest is measured no further.
_HOPELESS = 1.3
_REPETITIONS, _SECONDS = 5, 3.0


@dataclass(frozen=True)
class Execution:
    """How a network computes.

    Args:
        bfloat16: under autocast; weights stay in float32.
        channels_last: the layout of weights and maps in memory.
        side_by_side: convolutions read narrow maps several images at once, as `narrow_maps` tells.
    """

    bfloat16: bool = False
    channels_last: bool = False
    side_by_side: bool = False

    def place(self, module: nn.Module, device: torch.device) -> None:
        """Moves a module to a device, into this layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        module.to(device).to(memory_format=layout)
        for layer in module.modules():
            if type(layer) in (nn.Conv2d, NarrowConv2d):
                layer.__class__ = NarrowConv2d if self.side_by_side else nn.Conv2d


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, up to 2 GiB, for whatever comes next.

    A training step frees all its maps. The C library gives blocks as large as these back to the
    system, and when the next step takes them anew, each of their pages costs a fault: on two cores
    about a tenth of a step. Does nothing where the library is not glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_threshold, 32 * 2**20)  # the largest that it takes


def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def usual_execution(device: torch.device) -> Execution:
    """What mostly is fastest: all of it where the device has bfloat16 in hardware, else nothing."""
    gains = gains_by_bfloat16(device)
    return Execution(gains, gains, gains and device.type == "cpu")


def fastest_execution(
    name: str,
    classifier: Classifier,
    image_size: tuple[int, int],
    batch_size: int,
    device: torch.device,
    workspace: Path,
) -> Execution:
    """Measures a training step in each way, once for a machine's workspace.

    Later calls find the answer there, so that all trials of a search compute alike.

    Args:
        name: of the network.
        classifier: the network; is left as it is.
        image_size: height and width in pixels.
        batch_size: images in a step.
        device: where it would compute.
        workspace: the answers lie in `executions.json` in it.
    """
    channels, (height, width) = classifier.mean.shape[1], image_size
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    case = f"{name}, {batch_size}x{channels}x{height}x{width}, {device_name(device)}, {threads}"
    path = workspace / FILE_NAME
    workspace.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        known = _known(path)
        if case not in known:
            images = torch.zeros(batch_size, channels, height, width, device=device)
            known[case] = _measured(classifier, images)
            partial = path.with_suffix(".partial")
            answers = {key: asdict(execution) for key, execution in known.items()}
            partial.write_text(json.dumps(answers, indent=1) + "\n")
            os.replace(partial, path)
    return known[case]


def _known(path: Path) -> dict[str, Execution]:
    try:
        answers = json.loads(path.read_text())
        return {key: Execution(**execution) for key, execution in answers.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # none yet, or damaged: measured again


def _measured(classifier: Classifier, images: torch.Tensor) -> Execution:
    """The fastest way; the usual one unless another is clearly faster."""
    usual = usual_execution(images.device)
    # Maps lie side by side for the sake of matrix instructions: with the usual way, or not at all.
    candidates = [usual] + [
        Execution(bfloat16, channels_last)
        for bfloat16 in sorted({False, usual.bfloat16})
        for channels_last in (False, True)
        if Execution(bfloat16, channels_last) != usual
    ]
    steps = {candidate: _step(classifier, images, candidate) for candidate in candidates}
    best = dict.fromkeys(candidates, float("inf"))
    remaining = candidates
    if images.device.type == "cpu":
        keep_freed_memory()  # as in training
    # What a network draws, for dropout, is not what the trial would draw.
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        for step in steps.values():
            step()
        # In turns: else a neighbour's burst of work would decide against whom it met.
        started = time.perf_counter()
        for _ in range(_REPETITIONS):
            for candidate in remaining:
                best[candidate] = min(best[candidate], steps[candidate]())
            remaining = [each for each in remaining if best[each] < min(best.values()) * _HOPELESS]
            if len(remaining) == 1 or time.perf_counter() - started > _SECONDS:
                break
    fastest = min(candidates, key=best.__getitem__)
    return fastest if best[fastest] < best[usual] * _WORTH else usual


def _step(
    classifier: Classifier, images: torch.Tensor, execution: Execution
) -> Callable[[], float]:
    """A step forward and backward that gives its seconds."""
    network = copy.deepcopy(classifier).train()
    execution.place(network, images.device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    # Processor time where there is no GPU: on a busy machine the clock tells of its neighbours.
    clock = time.perf_counter if images.is_cuda else time.process_time

    def seconds() -> float:
        started = clock()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=execution.bfloat16):
            logits = network(images)
        torch.autograd.backward(cross_entropy(logits.float(), labels))
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return clock() - started

    return seconds
