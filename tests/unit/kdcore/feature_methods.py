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

from kdcore.backbones import probe_shapes
from kdcore.method import Method
from kdcore.methods import CATALOGUE
from kdcore.taps import Batch, Setting, Shapes, Taps

TRAIN_IMAGES = 40

# Another number of stages, other channels, either side the larger one; student and teacher.
PAIRS = [("resnet8", "resnet14"), ("resnet8", "resnet50"), ("resnet50", "resnet8x4")]


def random(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def _shapes(network: str, image_size: tuple[int, int]) -> Shapes:
    return probe_shapes(network, num_classes=10, in_channels=1, image_size=image_size)


def setting(
    student: str = "resnet8",
    teacher: str = "resnet14",
    *,
    image_size: tuple[int, int] = (16, 24),
    train_labels: Tensor | None = None,
) -> Setting:
    """Two networks on images that are not square."""
    if train_labels is None:
        train_labels = torch.arange(TRAIN_IMAGES) % 10
    return Setting(_shapes(student, image_size), _shapes(teacher, image_size), train_labels)


def build(name: str, where: Setting, **params: Any) -> Method:
    """A method of the catalogue, with its published settings but for those given."""
    torch.manual_seed(0)
    method = CATALOGUE[name]
    return method(method.Params.model_validate(params), where).train()


def batch_of(images: int, *, epoch: int = 1, epochs: int = 1) -> Batch:
    """The training images 0, 3, 6, ..., labelled as in `setting`."""
    indices = torch.arange(images) * 3
    return Batch(indices % 10, indices, epoch, epochs)


def changed(taps: Taps, change: Callable[[Tensor], Tensor]) -> Taps:
    """The taps with the change made to every tensor."""
    return Taps(
        change(taps.logits),
        change(taps.embedding),
        {tap: change(value) for tap, value in taps.maps.items()},
        {tap: change(value) for tap, value in taps.preactivations.items()},
    )


def tensors(taps: Taps) -> list[Tensor]:
    return [taps.logits, taps.embedding, *taps.maps.values(), *taps.preactivations.values()]


def leaves(taps: Taps) -> Taps:
    return changed(taps, lambda value: value.detach().clone().requires_grad_())


def taps_of(where: Setting, images: int) -> tuple[Taps, Taps]:
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
            )
        )
    return both[0], both[1]


def _first_row_dead(value: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(value[:1]), value[1:]])


def _interleaved(value: Tensor) -> Tensor:
    return value.to(memory_format=torch.channels_last) if value.ndim == 4 else value


HARD: dict[str, Callable[[Tensor], Tensor]] = {
    "ordinary": lambda value: value,
    "zero": torch.zeros_like,
    "one dead image": _first_row_dead,
    "identical rows": lambda value: value[:1].expand_as(value).contiguous(),
    "two identical rows": lambda value: torch.cat([value[:1], value[:1], value[2:]]),
    "constant": lambda value: torch.full_like(value, 3.0),
    "of 1e4": lambda value: value.sign() * 1e4,
    "weak": lambda value: value * 1e-6,
    "one image": lambda value: value[:1],
    "two images": lambda value: value[:2],
    "channels last": _interleaved,
    "float16": lambda value: value.half(),
    "bfloat16": lambda value: value.bfloat16(),
}


def assert_sound(method: Method, student: Taps, teacher: Taps, *, autocast: bool = False) -> None:
    """The term is a finite float32 scalar with finite gradients, and the teacher gets none.

    They reach what the method declares to read, and nothing else of the student.
    """
    student, teacher = leaves(student), leaves(teacher)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = method(student, teacher, batch_of(len(student.logits)))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    loss.backward()
    method.after_step()
    assert all(value.grad is None for value in tensors(teacher))
    undeclared = replace(
        student,
        embedding=student.logits if "embedding" in method.needs else student.embedding,
        maps={} if "maps" in method.needs else student.maps,
        preactivations={} if "preactivations" in method.needs else student.preactivations,
    )
    assert all(value.grad is None for value in tensors(undeclared))
    grads = [value.grad for value in (*tensors(student), *method.parameters())]
    assert any(grad is not None for grad in grads)
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


def assert_never_waits(method: Method) -> None:
    """Nor forward, backward or the step's end reads a tensor's values in Python."""
    where = setting()
    student, teacher = (changed(taps, Tensor.float) for taps in taps_of(where, 6))
    student = leaves(student)
    with watched():
        method(student, teacher, batch_of(6)).backward()
        method.after_step()
