"""What every method of the catalogue keeps to. No method is named here."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdcore.backbones import probe_shapes
from kdcore.distillation import TermConfig, build_terms
from kdcore.layers import layer_options, resolve_layers
from kdcore.method import Method
from kdcore.methods import CATALOGUE, check_method
from kdcore.span import Choice, LayerChoice, Span
from kdcore.taps import Batch, Setting, Shapes, Tap, Taps

PAIRS = [
    ("resnet8", "resnet20"),
    ("resnet8", "resnet8x4"),
    ("resnet8", "resnet50"),
    ("resnet50", "resnet8"),
]
TRAIN_IMAGES = 40
EPOCHS = 3

every_method = pytest.mark.parametrize("name", CATALOGUE)
every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-".join)


@cache
def shapes(network: str, height: int = 32, width: int = 32) -> Shapes:
    """A network's shapes; the widest one has a sixteenth of its channels, to save minutes."""
    probed = probe_shapes(network, num_classes=10, in_channels=3, image_size=(height, width))
    if probed.embedding_width < 1024:
        return probed
    maps = {tap: (size[0] // 16, *size[1:]) for tap, size in probed.maps.items()}
    return replace(probed, maps=maps, embedding_width=probed.embedding_width // 16)


def setting(pair: tuple[str, str], height: int = 32, width: int = 32) -> Setting:
    student, teacher = pair
    labels = torch.arange(TRAIN_IMAGES) % 10
    return Setting(shapes(student, height, width), shapes(teacher, height, width), labels)


def build(name: str, where: Setting) -> Method:
    """The method with its published settings, ready to train."""
    (term,) = build_terms((TermConfig.model_validate({"method": name}),), where, seed=0)
    return term.method.train()


def random_taps(network: Shapes, images: int, seed: int) -> Taps:
    """Outputs as a network might give them: every map is its preactivation after a ReLU."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    preactivations = {tap: normal(images, *size) for tap, size in network.maps.items()}
    return Taps(
        normal(images, network.num_classes),
        normal(images, network.embedding_width).relu(),
        {tap: value.relu() for tap, value in preactivations.items()},
        preactivations,
    )


def changed(taps: Taps, change: Callable[[Tensor], Tensor]) -> Taps:
    """The taps with the change made to every tensor."""
    return Taps(
        change(taps.logits),
        change(taps.embedding),
        {tap: change(value) for tap, value in taps.maps.items()},
        {tap: change(value) for tap, value in taps.preactivations.items()},
    )


def leaves(taps: Taps) -> Taps:
    """The taps as leaves of a new graph, so that each tensor has a gradient of its own."""
    return changed(taps, lambda value: value.detach().clone().requires_grad_())


def gradients(taps: Taps) -> dict[Tap, list[Tensor | None]]:
    return {
        Tap.LOGITS: [taps.logits.grad],
        Tap.EMBEDDING: [taps.embedding.grad],
        Tap.MAPS: [value.grad for value in taps.maps.values()],
        Tap.PREACTIVATIONS: [value.grad for value in taps.preactivations.values()],
    }


def batch_of(images: int, epoch: int = 1) -> Batch:
    indices = torch.arange(images) * 3
    return Batch(indices % 10, indices, epoch=epoch, epochs=EPOCHS)


def epochs_of(method: Method) -> tuple[int, ...]:
    """An epoch of each stage: the first, and the last where the first one prepares."""
    return (1, EPOCHS) if method.preparation_epochs(EPOCHS) else (1,)


@dataclass(frozen=True)
class Inputs:
    """A student's and a teacher's outputs for the same images, and the shapes they have."""

    setting: Setting
    student: Taps
    teacher: Taps

    def both(self, change: Callable[[Taps], Taps]) -> "Inputs":
        return replace(self, student=change(self.student), teacher=change(self.teacher))


def ordinary(where: Setting, images: int = 6) -> Inputs:
    return Inputs(
        where, random_taps(where.student, images, seed=1), random_taps(where.teacher, images, 2)
    )


def loss_with_gradients(
    method: Method, inputs: Inputs, epoch: int = 1
) -> tuple[Tensor, Taps, Taps]:
    """The loss, after its gradient went back; with the leaves that it may have reached."""
    torch.manual_seed(0)  # some methods draw
    student, teacher = leaves(inputs.student), leaves(inputs.teacher)
    method.begin_epoch(epoch, EPOCHS)
    loss = method(student, teacher, batch_of(len(student.logits), epoch))
    # Only a method that reads nothing may be a constant.
    assert loss.requires_grad == bool(method.needs)
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), student, teacher


def assert_sound(method: Method, inputs: Inputs) -> None:
    for epoch in epochs_of(method):
        loss, student, _ = loss_with_gradients(method, inputs, epoch)
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        of_taps = [grad for grads in gradients(student).values() for grad in grads]
        of_helpers = [parameter.grad for parameter in method.parameters()]
        for grad in of_taps + of_helpers:
            assert grad is None or bool(grad.isfinite().all())


# The catalogue


def test_the_catalogue_is_in_alphabetical_order() -> None:
    assert list(CATALOGUE) == sorted(CATALOGUE)
    assert len(CATALOGUE) == 25


def test_the_catalogue_has_exactly_one_control_that_reads_nothing() -> None:
    assert len([method for method in CATALOGUE.values() if not method.needs]) == 1


@every_method
def test_the_name_of_a_method_is_the_name_of_its_file(name: str) -> None:
    assert CATALOGUE[name].__module__ == f"kdcore.methods.{name}"
    assert check_method(name) == name


@every_method
def test_a_misspelt_method_is_refused_with_the_name_that_was_meant(name: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown method '{name}x'; did you mean '{name}'\?"):
        check_method(f"{name}x")


def test_a_name_like_no_other_is_refused_with_the_whole_catalogue() -> None:
    with pytest.raises(ValueError, match=f"catalogue has {', '.join(CATALOGUE)}$") as caught:
        check_method("zzzzzzzz")
    assert "did you mean" not in str(caught.value)


@every_method
def test_a_method_tells_its_paper_and_what_it_does(name: str) -> None:
    method = CATALOGUE[name]
    described = (method.__doc__ or "").strip()
    assert described.endswith(".")
    assert described != (Method.__doc__ or "").strip()
    if method.needs:
        assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\S+", method.paper)
        module = inspect.getmodule(method)
        assert module is not None
        assert method.paper in (module.__doc__ or "")
    else:
        assert method.paper == "-"


@every_method
def test_a_method_needs_kinds_of_taps(name: str) -> None:
    needs = CATALOGUE[name].needs
    assert isinstance(needs, frozenset)
    assert all(isinstance(tap, Tap) for tap in needs)


# Settings


@every_method
def test_published_settings_are_legal(name: str) -> None:
    params = CATALOGUE[name].Params()
    assert CATALOGUE[name].Params.model_validate(params.model_dump()) == params
    # Defaults are not validated on their own: 1 for a float would pass the comparison above.
    for field, value in params:
        assert type(value) is type(getattr(CATALOGUE[name].Params.model_validate({}), field))


@every_method
def test_published_settings_lie_in_what_is_searched(name: str) -> None:
    params = CATALOGUE[name].Params()
    for field, mark in params.searched().items():
        value = getattr(params, field)
        if isinstance(mark, Span):
            assert mark.low <= value <= mark.high
        elif isinstance(mark, Choice):
            assert value in mark.options


@every_method
def test_every_end_of_what_is_searched_is_legal(name: str) -> None:
    params = CATALOGUE[name].Params
    for field, mark in params.searched().items():
        ends: tuple[bool | int | float | str, ...] = ()
        if isinstance(mark, Span):
            ends = (mark.low, mark.high)
        elif isinstance(mark, Choice):
            ends = mark.options
        for end in ends:
            assert getattr(params.model_validate({field: end}), field) == end


@every_method
@every_pair
def test_every_searched_layer_and_the_published_one_build_a_method(
    name: str, pair: tuple[str, str]
) -> None:
    where = setting(pair)
    marks = CATALOGUE[name].Params.searched().items()
    for field in [field for field, mark in marks if isinstance(mark, LayerChoice)]:
        published = getattr(CATALOGUE[name].Params(), field)
        assert resolve_layers(published, where.student, where.teacher)
        for option in layer_options(where.student, where.teacher):
            params = CATALOGUE[name].Params.model_validate({field: option})
            method = CATALOGUE[name](params, where)
            loss = method(*_pair_of_taps(where), batch_of(4))
            assert loss.isfinite()


def _pair_of_taps(where: Setting) -> tuple[Taps, Taps]:
    return random_taps(where.student, 4, seed=1), random_taps(where.teacher, 4, seed=2)


@every_method
def test_every_method_but_the_control_searches_its_weight(name: str) -> None:
    assert ("weight" in CATALOGUE[name].Params.searched()) == bool(CATALOGUE[name].needs)


@every_method
def test_settings_are_frozen(name: str) -> None:
    params = CATALOGUE[name].Params()
    with pytest.raises(ValidationError, match="frozen"):
        params.weight = 2.0


@every_method
@pytest.mark.parametrize(
    "wrong",
    [{"weigth": 1.0}, {"weight": -1e-9}, {"weight": float("nan")}, {"weight": float("inf")}],
    ids=str,
)
def test_settings_refuse_unknown_keys_and_impossible_weights(
    name: str, wrong: dict[str, float]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CATALOGUE[name].Params.model_validate(wrong)


# Construction


@every_method
@every_pair
def test_the_same_seed_builds_the_same_helpers(name: str, pair: tuple[str, str]) -> None:
    objective = (TermConfig.model_validate({"method": name}),)
    before = torch.get_rng_state()
    first, again, other = (build_terms(objective, setting(pair), seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    states = [terms[0].method.state_dict() for terms in (first, again, other)]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    if any(parameter.ndim > 1 for parameter in first[0].method.parameters()):
        assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


# The loss


@every_method
@every_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_outputs_of_any_precision_give_a_finite_float32_loss_and_gradient(
    name: str, pair: tuple[str, str], dtype: torch.dtype
) -> None:
    inputs = ordinary(setting(pair)).both(lambda taps: changed(taps, lambda value: value.to(dtype)))
    assert_sound(build(name, inputs.setting), inputs)


@every_method
@every_pair
def test_autocast_changes_neither_type_nor_soundness_of_the_loss(
    name: str, pair: tuple[str, str]
) -> None:
    inputs = ordinary(setting(pair)).both(
        lambda taps: changed(taps, lambda value: value.to(torch.bfloat16))
    )
    method = build(name, inputs.setting)
    student, teacher = leaves(inputs.student), leaves(inputs.teacher)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(student, teacher, batch_of(6))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    if loss.requires_grad:
        loss.backward()
        grads = [grad for grads in gradients(student).values() for grad in grads]
        assert all(grad is None or grad.isfinite().all() for grad in grads)


def _zeros(inputs: Inputs) -> Inputs:
    return inputs.both(lambda taps: changed(taps, torch.zeros_like))


def _dead_student(inputs: Inputs) -> Inputs:
    return replace(inputs, student=changed(inputs.student, torch.zeros_like))


def _dead_teacher(inputs: Inputs) -> Inputs:
    return replace(inputs, teacher=changed(inputs.teacher, torch.zeros_like))


def _one_dead_image(inputs: Inputs) -> Inputs:
    def kill(value: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(value[:1]), value[1:]])

    return inputs.both(lambda taps: changed(taps, kill))


def _identical_rows(inputs: Inputs) -> Inputs:
    # Not `expand`: real batches with repeated images have memory of their own.
    return inputs.both(
        lambda taps: changed(taps, lambda value: value[:1].expand_as(value).contiguous())
    )


def _two_identical_rows(inputs: Inputs) -> Inputs:
    return inputs.both(
        lambda taps: changed(taps, lambda value: torch.cat([value[:1], value[:1], value[2:]]))
    )


def _constant_logits(inputs: Inputs) -> Inputs:
    return inputs.both(lambda taps: replace(taps, logits=torch.full_like(taps.logits, 3.0)))


def _saturated_logits(inputs: Inputs) -> Inputs:
    student = replace(inputs.student, logits=inputs.student.logits.sign() * 1e4)
    teacher = replace(inputs.teacher, logits=inputs.teacher.logits.sign() * 1e4)
    return replace(inputs, student=student, teacher=teacher)


def _opposite_one_hot_logits(inputs: Inputs) -> Inputs:
    student, teacher = (
        torch.zeros_like(inputs.student.logits),
        torch.zeros_like(inputs.teacher.logits),
    )
    student[:, 0], student[:, 1] = 1e4, -1e4
    teacher[:, 0], teacher[:, 1] = -1e4, 1e4
    return replace(
        inputs,
        student=replace(inputs.student, logits=student),
        teacher=replace(inputs.teacher, logits=teacher),
    )


def _strong_maps(inputs: Inputs) -> Inputs:
    return inputs.both(lambda taps: changed(taps, lambda value: value * 1e3))


def _weak_maps(inputs: Inputs) -> Inputs:
    return inputs.both(lambda taps: changed(taps, lambda value: value * 1e-6))


def _batch_of_one(inputs: Inputs) -> Inputs:
    return inputs.both(lambda taps: changed(taps, lambda value: value[:1]))


def _batch_of_two(inputs: Inputs) -> Inputs:
    return inputs.both(lambda taps: changed(taps, lambda value: value[:2]))


def _channels_last(inputs: Inputs) -> Inputs:
    def reorder(value: Tensor) -> Tensor:
        return value.to(memory_format=torch.channels_last) if value.ndim == 4 else value

    return inputs.both(lambda taps: changed(taps, reorder))


HARD = [
    _zeros,
    _dead_student,
    _dead_teacher,
    _one_dead_image,
    _identical_rows,
    _two_identical_rows,
    _constant_logits,
    _saturated_logits,
    _opposite_one_hot_logits,
    _strong_maps,
    _weak_maps,
    _batch_of_one,
    _batch_of_two,
    _channels_last,
]


@every_method
@every_pair
@pytest.mark.parametrize("harden", HARD, ids=lambda harden: harden.__name__.strip("_"))
def test_hard_outputs_give_a_finite_loss_and_gradient(
    name: str, pair: tuple[str, str], harden: Callable[[Inputs], Inputs]
) -> None:
    inputs = harden(ordinary(setting(pair)))
    assert_sound(build(name, inputs.setting), inputs)


@every_method
@every_pair
def test_maps_need_not_be_square(name: str, pair: tuple[str, str]) -> None:
    inputs = ordinary(setting(pair, 24, 40))
    assert_sound(build(name, inputs.setting), inputs)


def _with_sides(network: Shapes, height: int, width: int) -> Shapes:
    return replace(
        network, maps={tap: (size[0], height, width) for tap, size in network.maps.items()}
    )


@every_method
@every_pair
def test_one_map_may_be_taller_and_the_other_wider(name: str, pair: tuple[str, str]) -> None:
    where = setting(pair)
    where = replace(
        where,
        student=_with_sides(where.student, 9, 4),
        teacher=_with_sides(where.teacher, 6, 7),
    )
    inputs = ordinary(where)
    assert_sound(build(name, where), inputs)


@every_method
def test_the_order_of_channels_in_memory_changes_nothing(name: str) -> None:
    inputs = ordinary(setting(("resnet8", "resnet8x4")))
    method = build(name, inputs.setting)
    planes, _, _ = loss_with_gradients(method, inputs)
    interleaved, _, _ = loss_with_gradients(method, _channels_last(inputs))
    assert interleaved.item() == pytest.approx(planes.item(), rel=1e-5)


@every_method
def test_batches_of_different_sizes_are_refused_with_the_name_of_the_method(name: str) -> None:
    inputs = ordinary(setting(("resnet8", "resnet20")))
    method = build(name, inputs.setting)
    fewer = changed(inputs.teacher, lambda value: value[:5])
    with pytest.raises(ValueError, match=rf"^{CATALOGUE[name].__name__}: .*6 images .* 5"):
        method(inputs.student, fewer, batch_of(6))


@every_method
@every_pair
def test_no_gradient_reaches_the_teacher(name: str, pair: tuple[str, str]) -> None:
    inputs = ordinary(setting(pair))
    _, _, teacher = loss_with_gradients(build(name, inputs.setting), inputs)
    assert all(grad is None for grads in gradients(teacher).values() for grad in grads)


@every_method
@every_pair
def test_gradient_reaches_the_declared_taps_and_no_other(name: str, pair: tuple[str, str]) -> None:
    inputs = ordinary(setting(pair))
    method = build(name, inputs.setting)
    reached = set()
    for epoch in epochs_of(method):
        _, student, _ = loss_with_gradients(method, inputs, epoch)
        for kind, grads in gradients(student).items():
            if any(grad is not None and bool(grad.any()) for grad in grads):
                reached.add(kind)
    assert reached == method.needs


@every_method
def test_a_method_works_with_nothing_but_the_taps_it_declares(name: str) -> None:
    inputs = ordinary(setting(("resnet8", "resnet20")))
    needs = CATALOGUE[name].needs

    def asked_for(taps: Taps) -> Taps:
        return Taps(
            taps.logits,
            taps.embedding,
            taps.maps if Tap.MAPS in needs else {},
            taps.preactivations if Tap.PREACTIVATIONS in needs else {},
        )

    assert_sound(build(name, inputs.setting), inputs.both(asked_for))


@every_method
@every_pair
def test_gradient_reaches_every_helper(name: str, pair: tuple[str, str]) -> None:
    inputs = ordinary(setting(pair))
    method = build(name, inputs.setting)
    for epoch in epochs_of(method):
        loss_with_gradients(method, inputs, epoch)
    for helper, parameter in method.named_parameters():
        assert parameter.grad is not None, helper
        assert parameter.grad.any(), helper


@pytest.mark.parametrize("name", [n for n, method in CATALOGUE.items() if method.batch_symmetric])
@every_pair
def test_the_order_of_the_images_in_a_batch_changes_nothing(
    name: str, pair: tuple[str, str]
) -> None:
    inputs = ordinary(setting(pair))
    method = build(name, inputs.setting)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    batch = batch_of(6)
    shuffled = inputs.both(lambda taps: changed(taps, lambda value: value[order]))
    with torch.no_grad():
        straight = method(inputs.student, inputs.teacher, batch)
        permuted = method(
            shuffled.student,
            shuffled.teacher,
            replace(batch, labels=batch.labels[order], indices=batch.indices[order]),
        )
    assert permuted.item() == pytest.approx(straight.item(), rel=1e-5)


@pytest.mark.parametrize("name", [n for n, method in CATALOGUE.items() if method.zero_at_equality])
def test_a_method_without_helpers_is_zero_where_both_networks_say_the_same(name: str) -> None:
    where = setting(("resnet8", "resnet8"))
    method = build(name, where)
    if list(method.parameters()):
        return  # its own test file holds this rule for the pure function behind the helpers
    taps = changed(random_taps(where.student, 6, seed=3), Tensor.double)
    loss = method(taps, taps, batch_of(6))
    assert abs(loss.item()) <= 1e-10


@every_method
def test_inputs_are_left_as_they_were(name: str) -> None:
    inputs = ordinary(setting(("resnet8", "resnet20")))
    kept = inputs.both(lambda taps: changed(taps, Tensor.clone))
    loss_with_gradients(build(name, inputs.setting), inputs)
    for now, before in ((inputs.student, kept.student), (inputs.teacher, kept.teacher)):
        assert torch.equal(now.logits, before.logits)
        assert torch.equal(now.embedding, before.embedding)
        assert all(torch.equal(now.maps[tap], before.maps[tap]) for tap in before.maps)
        assert all(
            torch.equal(now.preactivations[tap], before.preactivations[tap])
            for tap in before.preactivations
        )
