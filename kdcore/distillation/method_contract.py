"""What every method keeps to, tried on random outputs of two networks; each breach in words.

The tests run it over the whole catalogue, and `kdsearch check-plugin` over a user's own methods.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from kdcore.backbones.probe import probe_shapes
from kdcore.contract.method import Method, Params
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.plugin_faults import fault_in_plugin
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import STUDENTS_ALONE, Batch, Tap, Taps
from kdcore.methods import CATALOGUE

_IMAGES, _EPOCHS, _CLASSES = 6, 4, 10
_PAIRS = (("resnet8", "resnet14"), ("resnet8", "vgg8"))
_SIZE = (32, 48)
_REPETITIONS = 20  # of what is timed

HARD: Mapping[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "outputs of the size of 10,000": lambda value: value * 1e4,
    "the same outputs for all images": lambda value: value[:1].expand_as(value).clone(),
    "a batch of one image": lambda value: value[:1],
    "channels last": lambda value: (
        value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
    ),
    "bfloat16": lambda value: value.bfloat16(),
    "float16": lambda value: value.half(),
}


def breaches(name: str) -> list[str]:
    """What a method breaks of its contract, each in a sentence; none if it keeps it.

    Args:
        name: of the catalogue, or of a plugin that is in use.
    """
    found: list[str] = []
    for what, check in _CHECKS.items():
        with torch.random.fork_rng(devices=[]):
            try:
                found += [f"{name}: {each}" for each in check(CATALOGUE[name])]
            except (Exception, SystemExit) as error:
                fault = fault_in_plugin(error) or f"{type(error).__name__}: {error}"
                found.append(f"{name}: {what}: {' '.join(fault.split())}")
        if found:  # what follows would fail by it, too
            return found
    return found


def _networks(student: str, teacher: str) -> NetworkPair:
    own, other = (
        probe_shapes(each, num_classes=_CLASSES, in_channels=3, image_size=_SIZE)
        for each in (student, teacher)
    )
    return NetworkPair(own, other, torch.arange(40) % _CLASSES)


def _built(method: type[Method], networks: NetworkPair, params: Params | None = None) -> Method:
    torch.manual_seed(0)
    return method(params or method.Params(), networks).train()


def _outputs(networks: NetworkPair) -> tuple[Taps, Taps]:
    """Random outputs of student and teacher."""
    both = []
    for seed, network in enumerate((networks.student, networks.teacher)):
        generator = torch.Generator().manual_seed(seed)

        def random(*size: int, of: torch.Generator = generator) -> Tensor:
            return torch.randn(_IMAGES, *size, generator=of)

        before = {tap: random(*size) for tap, size in network.maps.items()}
        both.append(
            Taps(
                random(_CLASSES),
                random(network.embedding_width),
                {tap: values.relu() for tap, values in before.items()},
                before,
                random(3, *_SIZE),
                random(3, *_SIZE),
                None if network.class_map is None else random(_CLASSES, *network.class_map),
                # Projected to the teacher's width.
                None
                if network.class_map is None
                else random(networks.teacher.embedding_width, *network.class_map),
                random(_CLASSES),
            )
        )
    return both[0], both[1]


def _leaves(taps: Taps) -> Taps:
    return taps.changed(lambda value: value.detach().clone().requires_grad_())


def _batch(images: int, epoch: int) -> Batch:
    indices = torch.arange(images) * 3
    return Batch(indices % _CLASSES, indices, epoch, _EPOCHS)


def _epochs(method: Method) -> tuple[int, ...]:
    return (1, _EPOCHS) if method.preparation_epochs(_EPOCHS) else (1,)


def _loss(method: Method, student: Taps, teacher: Taps, epoch: int) -> Tensor:
    torch.manual_seed(0)  # some methods draw
    method.begin_epoch(epoch, _EPOCHS)
    loss: Tensor = method(student, teacher, _batch(len(student.logits), epoch))
    return loss


def _settings(method: type[Method]) -> Iterator[str]:
    if CATALOGUE["none"] is method:
        return
    try:
        default = method.Params()
        method.Params.model_validate(default.model_dump())
    except ValidationError as error:
        yield f"its Params have a default that is not legal: {error.errors()[0]['msg']}"
        return
    for field, mark in method.Params.searched().items():
        value = getattr(default, field)
        ends: tuple[bool | int | float | str, ...] = ()
        if isinstance(mark, Span):
            ends = (mark.low, mark.high)
            if not mark.low <= value <= mark.high:
                yield f"{field} is {value} by default, outside of what is searched, {ends}"
        elif isinstance(mark, Choice):
            ends = mark.options
            if value not in ends:
                yield f"{field} is {value} by default, which is none of {ends}"
        for end in ends:
            try:
                method.Params.model_validate({field: end})
            except ValidationError as error:
                rule = error.errors()[0]["msg"]
                yield f"{field} is searched at {end}, which is not legal: {rule}"


def _sound(method: type[Method], student: Taps, teacher: Taps, where: NetworkPair) -> Iterator[str]:
    """What is wrong with loss and gradient for these outputs."""
    for epoch in _epochs(_built(method, where)):
        built = _built(method, where)
        leaves = _leaves(student.only(built.needs))
        loss = _loss(built, leaves, teacher.only(built.needs), epoch)
        if not isinstance(loss, Tensor) or loss.ndim:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            yield f"its loss has the shape {shape}, but must be a scalar, like a mean"
            return
        if loss.dtype not in (torch.float32, torch.float64):
            yield f"its loss is {loss.dtype}, but must be computed in float32: use full_precision"
        if not loss.isfinite():
            yield f"its loss is {loss.item()}"
            return
        if not loss.requires_grad:
            yield "its loss does not depend on the student"
            return
        torch.autograd.backward(loss)
        for kind, values in leaves.by_kind().items():
            if any(value.grad is not None and not value.grad.isfinite().all() for value in values):
                yield f"its gradient for the {kind} is not finite"


def _ordinary(method: type[Method]) -> Iterator[str]:
    if CATALOGUE["none"] is method:
        return
    for pair in _PAIRS:
        where = _networks(*pair)
        yield from _sound(method, *_outputs(where), where)


def _hard(method: type[Method]) -> Iterator[str]:
    if CATALOGUE["none"] is method:
        return
    where = _networks(*_PAIRS[0])
    for words, harden in HARD.items():
        student, teacher = (taps.changed(harden) for taps in _outputs(where))
        for wrong in _sound(method, student, teacher, where):
            yield f"with {words}, {wrong}"


def _taps(method: type[Method]) -> Iterator[str]:
    """Whether it declares what it reads."""
    where = _networks(*_PAIRS[0])
    read: set[Tap] = set()
    built = _built(method, where)
    for epoch in _epochs(built):
        student, teacher = (_leaves(taps.only(built.needs)) for taps in _outputs(where))
        loss = _loss(built, student, teacher, epoch)
        if loss.requires_grad:
            torch.autograd.backward(loss)
        for kind, values in student.by_kind().items():
            read |= {kind for value in values if value.grad is not None}
        if any(value.grad is not None for value in teacher.tensors()):
            yield "the teacher gets a gradient; it learns nothing, so detach what it gives"
    for kind in sorted(read - built.needs):
        yield f"it reads the {kind}, which `needs` does not declare"
    for kind in sorted(built.needs - read - STUDENTS_ALONE):  # no student here has those
        yield f"it declares that it reads the {kind}, but no gradient reaches the student's"


def _equality(method: type[Method]) -> Iterator[str]:
    where = _networks("resnet8", "resnet8")
    built = _built(method, where)
    if not method.zero_at_equality or any(True for _ in built.parameters()):
        return
    _, teacher = _outputs(where)
    loss = _loss(built, teacher, teacher, _EPOCHS)
    if abs(loss.item()) > 1e-5:
        yield (
            f"its loss is {loss.item():.3g} where both networks agree, but must be 0; else declare "
            f"zero_at_equality = False"
        )


def _order(method: type[Method]) -> Iterator[str]:
    if not method.batch_symmetric:
        return
    where = _networks(*_PAIRS[0])
    student, teacher = _outputs(where)
    backwards = torch.arange(_IMAGES).flip(0)
    usual = _batch(_IMAGES, _EPOCHS)
    losses = []
    for order in (torch.arange(_IMAGES), backwards):
        built = _built(method, where)
        torch.manual_seed(0)
        built.begin_epoch(_EPOCHS, _EPOCHS)
        batch = replace(usual, labels=usual.labels[order], indices=usual.indices[order])
        taps = [
            each.only(built.needs).changed(partial(torch.index_select, dim=0, index=order))
            for each in (student, teacher)
        ]
        losses.append(built(*taps, batch).item())
    if abs(losses[0] - losses[1]) > 1e-4 * max(1.0, abs(losses[0])):
        yield (
            f"its loss is {losses[0]:.6g}, and {losses[1]:.6g} for the same batch in another "
            f"order; if that is meant, declare batch_symmetric = False"
        )


def _resumes(method: type[Method]) -> Iterator[str]:
    """Whether its state dict has all that it remembers."""
    where = _networks(*_PAIRS[0])
    student, teacher = _outputs(where)
    built = _built(method, where)
    taps = [each.only(built.needs) for each in (student, teacher)]

    def step(of: Method) -> Tensor:
        loss = _loss(of, taps[0], taps[1], _EPOCHS)
        of.after_step()
        return loss.detach()

    step(built)
    again = _built(method, where)
    again.load_state_dict(built.state_dict())
    if not torch.equal(step(built), step(again)):
        yield (
            "after a resumption its loss is another: what it remembers must be parameters or "
            "registered buffers"
        )


def _both(method: type[Method]) -> tuple[Callable[[], Tensor], Callable[[], Any]]:
    """What computes its loss, and that of its twin, for the same outputs."""
    where = _networks(*_PAIRS[0])
    student, teacher = _outputs(where)
    batch = _batch(_IMAGES, _EPOCHS)

    def built() -> tuple[Method, Taps, Taps]:
        made = _built(method, where)
        made.begin_epoch(_EPOCHS, _EPOCHS)
        return made, student.only(made.needs), teacher.only(made.needs)

    made, *taps = built()
    other, *same = built()
    twin: Any = other
    return partial(made, *taps, batch), partial(twin.twin, *same, batch)


def _twin(method: type[Method]) -> Iterator[str]:
    """Whether its loss is that of its twin, where it has one."""
    if not hasattr(method, "twin"):
        return
    losses = []
    with torch.no_grad():
        for compute in _both(method):
            torch.manual_seed(0)
            losses.append(float(compute()))
    loss, twin = losses
    if not math.isclose(loss, twin, rel_tol=1e-4, abs_tol=1e-6):
        yield f"its loss is {loss:.6g}, but its twin gives {twin:.6g}"


def twin_speed(name: str) -> str:
    """How long a method's loss takes beside its twin, in words; empty where it has none."""
    method = CATALOGUE[name]
    if not hasattr(method, "twin"):
        return ""
    times = [math.inf, math.inf]
    both = _both(method)
    with torch.no_grad():
        for _ in range(_REPETITIONS):  # in turns, so that other work slows both
            for place, compute in enumerate(both):
                begun = time.perf_counter()
                compute()
                times[place] = min(times[place], 1000 * (time.perf_counter() - begun))
    loss, twin = times
    return (
        f"{name}: for {_IMAGES} images its loss takes {loss:.2g} ms and its twin {twin:.2g} ms, "
        f"{twin / loss:.2g} times as long"
    )


_CHECKS: Mapping[str, Callable[[type[Method]], Iterator[str]]] = {
    "its settings": _settings,
    "on random outputs": _ordinary,
    "what it reads": _taps,
    "on hard outputs": _hard,
    "where both networks agree": _equality,
    "in another order": _order,
    "after a resumption": _resumes,
    "beside its twin": _twin,
}
