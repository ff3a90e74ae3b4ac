"""What tests of methods with helpers or memories share: taps, hard taps, a watch on operations."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdcore.backbones.probe import probe_shapes
from kdcore.contract.method import Method
from kdcore.contract.network_pair import NetworkPair, Shapes
from kdcore.contract.taps import Batch, Taps
from kdcore.methods import CATALOGUE

TRAIN_IMAGES = 40

# Another number of stages, other channels, either side the larger one; student and teacher.
PAIRS = [("resnet8", "resnet14"), ("resnet8", "resnet50"), ("resnet50", "resnet8x4")]


def random(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def _shapes(network: str, image_size: tuple[int, int]) -> Shapes:
    """A network's shapes; the widest one has a sixteenth of its channels, to save minutes."""
    probed = probe_shapes(network, num_classes=10, in_channels=1, image_size=image_size)
    if probed.embedding_width < 1024:
        return probed
    maps = {tap: (size[0] // 16, *size[1:]) for tap, size in probed.maps.items()}
    return replace(probed, maps=maps, embedding_width=probed.embedding_width // 16)


def pair_of_networks(
    student: str = "resnet8",
    teacher: str = "resnet14",
    *,
    image_size: tuple[int, int] = (8, 12),
    train_labels: Tensor | None = None,
) -> NetworkPair:
    """Two networks on images that are not square."""
    if train_labels is None:
        train_labels = torch.arange(TRAIN_IMAGES) % 10
    return NetworkPair(_shapes(student, image_size), _shapes(teacher, image_size), train_labels)


def build(name: str, where: NetworkPair, **params: Any) -> Method:
    """A method of the catalogue, with its published settings but for those given."""
    torch.manual_seed(0)
    method = CATALOGUE[name]
    return method(method.Params.model_validate(params), where).train()


def batch_of(images: int, *, epoch: int = 1, epochs: int = 1) -> Batch:
    """The training images 0, 3, 6, ..., labelled as in `pair_of_networks`."""
    indices = torch.arange(images) * 3
    return Batch(indices % 10, indices, epoch, epochs)


def leaves(taps: Taps) -> Taps:
    """The taps as leaves of a new graph, so that each tensor has a gradient of its own."""
    return taps.changed(lambda value: value.detach().clone().requires_grad_())


def taps_of(where: NetworkPair, images: int) -> tuple[Taps, Taps]:
    """Random outputs of student and teacher, float64."""
    both = []
    for seed, network in enumerate((where.student, where.teacher)):
        preactivations = {
            tap: random(images, *size, seed=10 * seed + number)
            for number, (tap, size) in enumerate(network.maps.items())
        }
        both.append(
            Taps(
                random(images, network.num_classes, seed=10 * seed + 7),
                random(images, network.embedding_width, seed=10 * seed + 8).relu(),
                {tap: value.relu() for tap, value in preactivations.items()},
                preactivations,
                random(images, 1, 8, 12, seed=10 * seed + 9),
                random(images, 1, 8, 12, seed=10 * seed + 109),
                None
                if network.class_map is None
                else random(images, network.num_classes, *network.class_map, seed=10 * seed + 209),
                # Projected to the teacher's width.
                None
                if network.class_map is None
                else random(
                    *(images, where.teacher.embedding_width, *network.class_map),
                    seed=10 * seed + 409,
                ),
                random(images, network.num_classes, seed=10 * seed + 309),
            )
        )
    return both[0], both[1]


Change = Callable[[Tensor], Tensor]
Harden = Callable[[Taps, Taps], tuple[Taps, Taps]]


def _both(change: Change) -> Harden:
    return lambda student, teacher: (student.changed(change), teacher.changed(change))


def _logits(student_change: Change, teacher_change: Change) -> Harden:
    return lambda student, teacher: (
        replace(student, logits=student_change(student.logits)),
        replace(teacher, logits=teacher_change(teacher.logits)),
    )


def _sure_of(label: int) -> Change:
    def sure(logits: Tensor) -> Tensor:
        certain = torch.zeros_like(logits)
        certain[:, label], certain[:, 1 - label] = 1e4, -1e4
        return certain

    return sure


def _saturated(logits: Tensor) -> Tensor:
    return logits.sign() * 1e4


def _first_row_dead(value: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(value[:1]), value[1:]])


def _interleaved(value: Tensor) -> Tensor:
    return value.to(memory_format=torch.channels_last) if value.ndim == 4 else value


# Outputs of student and teacher that no formula likes.
HARD: dict[str, Harden] = {
    "ordinary": _both(lambda value: value),
    "zero": _both(torch.zeros_like),
    "zero student": lambda student, teacher: (student.changed(torch.zeros_like), teacher),
    "zero teacher": lambda student, teacher: (student, teacher.changed(torch.zeros_like)),
    "one dead image": _both(_first_row_dead),
    # Not `expand`: real batches with repeated images have memory of their own.
    "identical rows": _both(lambda value: value[:1].expand_as(value).contiguous()),
    "two identical rows": _both(lambda value: torch.cat([value[:1], value[:1], value[2:]])),
    "constant": _both(lambda value: torch.full_like(value, 3.0)),
    "saturated logits": _logits(_saturated, _saturated),
    "sure and opposed logits": _logits(_sure_of(0), _sure_of(1)),
    "of 1e4": _both(lambda value: value.sign() * 1e4),
    "strong": _both(lambda value: value * 1e3),
    "weak": _both(lambda value: value * 1e-6),
    "one image": _both(lambda value: value[:1]),
    "two images": _both(lambda value: value[:2]),
    "channels last": _both(_interleaved),
    "float16": _both(Tensor.half),
    "bfloat16": _both(Tensor.bfloat16),
}


def assert_sound(
    method: Method, student: Taps, teacher: Taps, *, batch: Batch, autocast: bool = False
) -> None:
    """The term is a finite float32 scalar with finite gradients, and the teacher gets none."""
    student, teacher = leaves(student), leaves(teacher)
    torch.manual_seed(0)  # some methods draw
    method.begin_epoch(batch.epoch, batch.epochs)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = method(student, teacher, batch)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    if loss.requires_grad:
        loss.backward()
    method.after_step()
    assert all(value.grad is None for value in teacher.tensors())
    grads = [value.grad for value in (*student.tensors(), *method.parameters())]
    assert all(grad.isfinite().all() for grad in grads if grad is not None)
    assert all(value.isfinite().all() or value.isinf().all() for value in method.buffers())


class _Watch(TorchDispatchMode):
    """Refuses what makes a GPU wait, and notes how large the largest tensor is."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        waits = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal)
        assert func.overloadpacket not in waits, f"{func} waits for the device"
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            chosen = [index for index in args[1] if index is not None]
            assert all(index.dtype != torch.bool for index in chosen), f"{func} with a mask waits"
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        sizes = [math.prod(value.shape) for value in made if isinstance(value, Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@contextmanager
def watched() -> Iterator[_Watch]:
    with _Watch() as watch:
        yield watch


def assert_never_waits(method: Method, student: Taps, teacher: Taps, batch: Batch) -> None:
    """Nor forward, backward or the step's end reads a tensor's values in Python."""
    student = leaves(student)
    with watched():
        loss = method(student, teacher, batch)
        if loss.requires_grad:
            loss.backward()
        method.after_step()
