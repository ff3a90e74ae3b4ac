"""In which precision and memory layout a network computes fastest on the device at hand."""

import copy
import ctypes
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from filelock import FileLock
from torch import nn
from torch.nn.functional import cross_entropy

from kdcore.execution.side_by_side import lay_side_by_side
from kdcore.networks.classifier import Classifier
from kdcore.networks.measurement import device_name

FILE_NAME = "executions.json"

# A way must gain as much over a plainer one: half precision rounds, and noise gains a little too.
_WORTH = 0.95

# What takes so many times as long as the fastest is measured no further.
_HOPELESS = 1.3
_REPETITIONS, _SECONDS = 4, 2.0

# A precision that a processor has no instructions for takes up to twenty times as long, which an
# eighth of the images shows too. So few tell less exactly: they rule out only what is far behind.
_PROBED, _UNKNOWN, _FAR_BEHIND = 8, 4.0, 1.5

# A network that only answers is measured with so many images, whatever a trial's batches are: its
# cached outputs are for trials with any batch.
_ANSWERED = 64
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Execution:
    """How a network computes.

    Args:
        precision: of convolutions and matrix products, under autocast; weights stay in float32.
        channels_last: the layout of weights and maps in memory.
        side_by_side: convolutions read narrow maps several images at once, as `narrow_maps` tells.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    side_by_side: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision is {self.precision!r}, but must be one of "
                f"{', '.join(get_args(Precision))}"
            )

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> "Execution":
        """What `asdict` gave; also in a checkpoint of version 0.1.0, whose only half precision was
        `bfloat16`, true or false."""
        fields = dict(stored)
        if "bfloat16" in fields:
            fields["precision"] = "bfloat16" if fields.pop("bfloat16") else "float32"
        return cls(**fields)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which a network computes in this precision."""
        half = torch.float16 if self.precision == "float16" else torch.bfloat16
        return torch.autocast(device.type, half, enabled=self.precision != "float32")

    def place(self, module: nn.Module, device: torch.device) -> None:
        """Moves a module to a device, into this layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        module.to(device).to(memory_format=layout)
        lay_side_by_side(module, self.side_by_side)


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


def candidates(device: torch.device) -> list[Execution]:
    """Every way in which a device may compute, plain ones first.

    Which instructions it has is not asked: a list of them would know the processors of its day
    alone. What it does not gain by is soon found out.
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
) -> Execution:
    """Measures a network in each way, once for a machine's workspace.

    Later calls find the answer there, so that all trials of a search compute alike.

    Args:
        name: of the network.
        classifier: the network; is left as it is.
        image_size: height and width in pixels.
        device: where it would compute.
        workspace: the answers lie in `executions.json` in it.
        batch_size: images in a step of training; none for a network that does not learn, but is
            only asked.
    """
    channels, (height, width) = classifier.mean.shape[1], image_size
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    what = "asked" if batch_size is None else f"trained by {batch_size}"
    size = f"{channels}x{height}x{width}"
    case = f"{name}, {what}, {size}, {device_name(device)}, {threads}"
    path = workspace / FILE_NAME
    workspace.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        known = _known(path)
        if case not in known:
            images = torch.zeros(batch_size or _ANSWERED, channels, height, width, device=device)
            known[case] = _measured(classifier, images, learns=batch_size is not None)
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
        return {}  # none yet, or damaged, or of another version: measured again


def _measured(classifier: Classifier, images: torch.Tensor, *, learns: bool) -> Execution:
    """The fastest way, or a plainer one that is as good as the fastest."""
    device = images.device
    if device.type == "cpu":
        keep_freed_memory()  # as in training
    steps = {way: _step(classifier, way, device, learns=learns) for way in candidates(device)}
    best = dict.fromkeys(steps, float("inf"))
    # What a network draws, for dropout, is not what the trial would draw.
    with torch.random.fork_rng([device] if images.is_cuda else []):
        remaining = list(steps)
        if device.type == "cpu":
            remaining = _not_far_behind(steps, images[: max(2, len(images) // _PROBED)])
        else:
            for step in steps.values():
                step(images)  # loads libraries, which takes longer than any step
        # In turns: else a neighbour's burst of work would decide against whom it met.
        started = time.perf_counter()
        for turn in range(_REPETITIONS):
            for way in remaining:
                best[way] = min(best[way], steps[way](images))
            if turn:  # in the first, libraries chose their kernels
                limit = min(best.values()) * _HOPELESS
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
    """The ways that few images do not rule out."""
    best: dict[Execution, float] = {}
    unknown: set[Precision] = set()  # to the processor
    for way, step in steps.items():
        if way.precision in unknown:
            continue
        best[way] = step(images)
        if best[way] > _UNKNOWN * min(best.values()):
            unknown.add(way.precision)
        else:
            best[way] = min(best[way], step(images))
    return [way for way, seconds in best.items() if seconds < _FAR_BEHIND * min(best.values())]


def _step(
    classifier: Classifier, execution: Execution, device: torch.device, *, learns: bool
) -> Callable[[torch.Tensor], float]:
    """A step, forward and where it learns backward, that gives its seconds for some images."""
    network = copy.deepcopy(classifier).train(learns)
    execution.place(network, device)

    # Processor time where there is no GPU: on a busy machine the clock tells of its neighbours.
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
