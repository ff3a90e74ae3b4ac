"""What every method of the catalogue keeps to, whatever its settings. No method is named here."""

import copy
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal, get_args, get_origin

import pytest
import torch
from feature_methods import (
    HARD,
    PAIRS,
    assert_never_waits,
    assert_sound,
    batch_of,
    leaves,
    pair_of_networks,
    taps_of,
)
from pydantic import ValidationError
from torch import Tensor

from kdcore.backbones.tracing.torch_private import BATCH_NORMS
from kdcore.contract.layer_pairs import layer_options, resolve_layers
from kdcore.contract.method import Method, Params
from kdcore.contract.network_pair import NetworkPair, Shapes
from kdcore.contract.published import BENCHMARKS
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import STUDENTS_ALONE, Batch, Mixed, Tap, Taps
from kdcore.distillation.config import TermConfig
from kdcore.distillation.distill import build_terms
from kdcore.methods import CATALOGUE, check_method
from tests.cases import Case

IMAGES = 6
EPOCHS = 3
PUBLISHED = "published settings"

# What has limits of its own under autocast.
HARD_IN_HALVES = {"ordinary", "zero", "one dead image", "identical rows", "of 1e4", "bfloat16"}

# Of the images: the deepest network's last maps then have more than one position.
LARGE = (24, 40)

every_method = pytest.mark.parametrize("name", CATALOGUE)


@cache
def variants(name: str) -> dict[str, Params]:
    """The published settings, and each other option of one field at a time."""
    params = CATALOGUE[name].Params
    made = {PUBLISHED: params()}
    marks = params.searched()
    for field, info in params.model_fields.items():
        options: tuple[bool | int | float | str, ...] = ()
        mark = marks.get(field)
        if isinstance(mark, Choice):
            numbers = all(isinstance(option, float) for option in mark.options)
            options = (min(mark.options), max(mark.options)) if numbers else mark.options
        elif get_origin(info.annotation) is Literal:
            options = get_args(info.annotation)
        elif info.annotation is bool:
            options = (False, True)
        for option in options:
            if option != getattr(params(), field):
                made[f"{field}={option}"] = params.model_validate({field: option})
    return made


def build(name: str, where: NetworkPair, params: Params | None = None) -> Method:
    """The method, with its published settings unless others are given, ready to train."""
    term = TermConfig.model_validate({"method": name, "params": params or {}})
    (built,) = build_terms((term,), where, seed=0)
    return built.method.train()


def every_variant(
    name: str,
    *,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    image_size: tuple[int, int] = (8, 12),
    double: bool = False,
) -> Iterator[tuple[Case, Method, Taps, Taps]]:
    """The method with outputs of both networks of each pair; with the second one, in all variants.

    First comes the context to test it in, which says which case it was that failed.
    """
    for pair in pairs:
        where = pair_of_networks(*pair, image_size=image_size)
        student, teacher = taps_of(where, IMAGES)
        if not double:
            student, teacher = student.changed(Tensor.float), teacher.changed(Tensor.float)
        for variant, params in variants(name).items():
            if variant == PUBLISHED or pair == PAIRS[1] or len(pairs) == 1:
                method = build(name, where, params)
                method = method.double() if double else method
                yield Case(*pair, variant), method, student, teacher


def batches(method: Method, images: int = IMAGES) -> list[Batch]:
    """A batch of each stage: of the first epoch, and of the last where the first one prepares."""
    epochs = (1, EPOCHS) if method.preparation_epochs(EPOCHS) else (1,)
    return [batch_of(images, epoch=epoch, epochs=EPOCHS) for epoch in epochs]


def loss_of(method: Method, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
    torch.manual_seed(0)  # some methods draw
    method.begin_epoch(batch.epoch, batch.epochs)
    return method(student, teacher, batch)


# The catalogue


def test_the_catalogue_is_in_alphabetical_order() -> None:
    assert list(CATALOGUE) == sorted(CATALOGUE)
    assert len(CATALOGUE) == 36


def test_the_catalogue_has_exactly_one_control_that_reads_nothing() -> None:
    assert len([method for method in CATALOGUE.values() if not method.needs]) == 1


def test_the_name_of_a_method_is_the_name_of_its_file() -> None:
    for name, method in CATALOGUE.items():
        assert method.__module__ == f"kdcore.methods.{name}"
        assert check_method(name) == name


def test_a_misspelt_method_is_refused_with_the_name_that_was_meant() -> None:
    for name in CATALOGUE:
        with pytest.raises(ValueError, match=rf"unknown method '{name}x'; did you mean '{name}'\?"):
            check_method(f"{name}x")


def test_a_name_like_no_other_is_refused_with_the_whole_catalogue() -> None:
    with pytest.raises(ValueError, match=f"catalogue has {', '.join(CATALOGUE)}$") as caught:
        check_method("zzzzzzzz")
    assert "did you mean" not in str(caught.value)


@every_method
def test_a_method_that_does_not_compare_images_is_a_mean_over_them(name: str) -> None:
    """So several processes may each have a part of a batch; the others are given all of it."""
    for case, method, student, teacher in every_variant(name, double=True):
        with case:
            for module in method.modules():  # batch norms do compare, unless they are told not to
                if isinstance(module, BATCH_NORMS):
                    module.eval()
            for batch in batches(method):
                before = [buffer.clone() for buffer in method.buffers()]
                whole = loss_of(method, student, teacher, batch)
                parts = torch.zeros_like(whole)
                for first, images in ((0, 4), (4, 2)):
                    rows = slice(first, first + images)
                    part = replace(
                        batch,
                        labels=batch.labels[rows],
                        indices=batch.indices[rows],
                        first=first,
                        whole=IMAGES,
                    )
                    ours, theirs = (
                        taps.changed(lambda t, rows=rows: t[rows]) for taps in (student, teacher)
                    )
                    parts += images / IMAGES * loss_of(method, ours, theirs, part)
                equal = torch.allclose(whole, parts, rtol=1e-9, atol=1e-12)
                loss_of(method, student, teacher, batch)
                method.after_step()
                remembers = any(
                    not torch.equal(one, two)
                    for one, two in zip(before, method.buffers(), strict=True)
                )
                assert method.compares_images == (remembers or not equal), batch.epoch


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


def test_a_method_needs_kinds_of_taps() -> None:
    for name, method in CATALOGUE.items():
        assert isinstance(method.needs, frozenset), name
        assert all(isinstance(tap, Tap) for tap in method.needs), name


# Settings


@every_method
def test_published_settings_are_legal_and_lie_in_what_is_searched(name: str) -> None:
    params = CATALOGUE[name].Params()
    assert CATALOGUE[name].Params.model_validate(params.model_dump()) == params
    # Defaults are not validated on their own: 1 for a float would pass the comparison above.
    for field, value in params:
        assert type(value) is type(getattr(CATALOGUE[name].Params.model_validate({}), field))
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


LAYERED = {
    name: field
    for name, method in CATALOGUE.items()
    for field, mark in method.Params.searched().items()
    if isinstance(mark, LayerChoice)
}


@pytest.mark.parametrize(("name", "field"), LAYERED.items())
def test_every_searched_layer_and_the_published_one_build_a_method(name: str, field: str) -> None:
    for pair in PAIRS:
        where = pair_of_networks(*pair)
        student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 4))
        published = getattr(CATALOGUE[name].Params(), field)
        assert resolve_layers(published, where.student, where.teacher)
        several = "stage2:stage2, stem:stem, stage2:stage1"
        for option in (*layer_options(where.student, where.teacher), several):
            params = CATALOGUE[name].Params.model_validate({field: option})
            with Case(*pair, option):
                loss = CATALOGUE[name](params, where)(student, teacher, batch_of(4))
                assert loss.isfinite()


def test_every_method_but_the_control_searches_its_weight() -> None:
    for name, method in CATALOGUE.items():
        assert ("weight" in method.Params.searched()) == bool(method.needs), name


def test_what_is_published_is_legal_and_within_what_is_searched() -> None:
    for name, method in CATALOGUE.items():
        assert "cifar" in method.published
        for benchmark, published in method.published.items():
            settings = {name: published.settings, **published.beside}
            with Case(name, benchmark):
                assert published.source
                for each, given in settings.items():
                    params = CATALOGUE[each].Params.model_validate(given)
                    for field, mark in params.searched().items():
                        value = getattr(params, field)
                        if isinstance(mark, Span):
                            assert mark.low <= value <= mark.high
                        elif isinstance(mark, Choice):
                            assert value in mark.options


def test_the_searched_weights_cover_every_published_share_of_cross_entropy() -> None:
    # RepDistiller and mdistiller, logit standardisation, mdistiller on ImageNet, plain sums.
    ratios = (0.9 / 0.1, 9 / 0.1, 0.5 / 0.5, 0.9 / 1)
    for name in ("kd", "ctkd"):
        weights = CATALOGUE[name].Params.searched()["weight"]
        assert isinstance(weights, Span)
        for benchmark in BENCHMARKS:
            published = CATALOGUE[name].published_on(benchmark).settings
            factor = CATALOGUE[name].Params.model_validate(published).cross_entropy
            for ratio in ratios if benchmark == "cifar" else ratios[2:]:
                assert weights.low <= ratio * factor <= weights.high


def test_settings_are_frozen_and_refuse_unknown_keys_and_impossible_weights() -> None:
    wrong = ({"weigth": 1.0}, {"weight": -1e-9}, {"weight": math.nan}, {"weight": math.inf})
    for name, method in CATALOGUE.items():
        params = method.Params()
        with Case(name):
            with pytest.raises(ValidationError, match="frozen"):
                params.weight = 2.0
            for settings in wrong:
                with pytest.raises(ValidationError, match=next(iter(settings))):
                    method.Params.model_validate(settings)


# Construction


@every_method
def test_the_same_seed_builds_the_same_helpers(name: str) -> None:
    objective = (TermConfig.model_validate({"method": name}),)
    before = torch.get_rng_state()
    for pair in PAIRS:
        first, again, other = (
            build_terms(objective, pair_of_networks(*pair), seed) for seed in (7, 7, 8)
        )
        assert torch.equal(torch.get_rng_state(), before)
        states = [terms[0].method.state_dict() for terms in (first, again, other)]
        assert list(states[0]) == list(states[1])
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        if any(parameter.ndim > 1 for parameter in first[0].method.parameters()):
            assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


# The loss


@every_method
def test_hard_outputs_give_a_finite_loss_and_gradient(name: str) -> None:
    for this, method, *outputs in every_variant(name):
        for hardness, harden in HARD.items():
            student, teacher = harden(*outputs)
            for batch in batches(method, len(student.logits)):
                for autocast in (False, True) if hardness in HARD_IN_HALVES else (False,):
                    with this, Case(hardness, f"epoch {batch.epoch}", *["autocast"] * autocast):
                        # A copy: what one case leaves in a memory is no other's input.
                        tried = copy.deepcopy(method)
                        assert_sound(tried, student, teacher, batch=batch, autocast=autocast)


def _with_sides(network: Shapes, height: int, width: int) -> Shapes:
    maps = {tap: (size[0], height, width) for tap, size in network.maps.items()}
    return replace(network, maps=maps, class_map=(height, width))


@every_method
def test_one_map_may_be_taller_and_the_other_wider(name: str) -> None:
    for pair in PAIRS:
        where = pair_of_networks(*pair)
        where = replace(
            where,
            student=_with_sides(where.student, 9, 4),
            teacher=_with_sides(where.teacher, 6, 7),
        )
        student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, IMAGES))
        for variant, params in variants(name).items():
            method = build(name, where, params)
            with Case(*pair, variant):
                for batch in batches(method):
                    assert_sound(method, student, teacher, batch=batch)


@every_method
def test_neither_the_order_of_channels_in_memory_nor_undeclared_taps_change_anything(
    name: str,
) -> None:
    for this, method, student, teacher in every_variant(name, pairs=PAIRS[:1]):
        with this:
            (batch, *_) = batches(method)

            outputs = [taps.only(method.needs) for taps in HARD["channels last"](student, teacher)]
            planes = loss_of(copy.deepcopy(method), student, teacher, batch).item()
            interleaved = loss_of(method, *outputs, batch).item()
            assert interleaved == pytest.approx(planes, rel=1e-5)


@every_method
def test_batches_of_different_sizes_are_refused_with_the_name_of_the_method(name: str) -> None:
    _, method, student, teacher = next(every_variant(name))
    fewer = teacher.changed(lambda value: value[:5])
    with pytest.raises(ValueError, match=rf"^{CATALOGUE[name].__name__}: .*6 images .* 5"):
        method(student, fewer, batch_of(IMAGES))


@every_method
def test_gradient_reaches_every_helper_and_the_declared_taps_and_no_other(name: str) -> None:
    needs: set[Tap] = set()
    for this, method, *outputs in every_variant(name, image_size=LARGE):
        with this:
            needs |= method.needs
            reached = set()
            for batch in batches(method):
                student, teacher = map(leaves, outputs)
                loss = loss_of(method, student, teacher, batch)
                # Only a method that reads nothing may be a constant.
                assert loss.requires_grad == bool(method.needs)
                if loss.requires_grad:
                    loss.backward()
                assert all(value.grad is None for value in teacher.tensors())
                for kind, values in student.by_kind().items():
                    if any(value.grad is not None and bool(value.grad.any()) for value in values):
                        reached.add(kind)
            assert reached == method.needs
            for helper, parameter in method.named_parameters():
                assert parameter.grad is not None, helper
                assert parameter.grad.any(), helper
    assert needs == CATALOGUE[name].needs - STUDENTS_ALONE  # no student here has a second head


@every_method
def test_a_small_step_against_the_gradient_lowers_the_term(name: str) -> None:
    for this, method, student, teacher in every_variant(name, image_size=LARGE, double=True):
        with this:
            for batch in batches(method):
                method.zero_grad()
                shown = leaves(student)
                loss = loss_of(method, shown, teacher, batch)
                if loss.item() == 0:
                    continue  # the control, and what has done its part once it has prepared
                loss.backward()
                # A helper may have an aim of its own; it trains the student all the same.
                learners = [value for value in shown.tensors() if value.grad is not None]
                if not any(value.grad.any() for value in learners):  # the student waits
                    learners = [value for value in method.parameters() if value.grad is not None]
                length = math.sqrt(sum(value.grad.square().sum().item() for value in learners))
                with torch.no_grad():
                    for value in learners:
                        value.sub_(value.grad, alpha=1e-4 / length)
                    after = loss_of(method, shown, teacher, batch)
                assert after < loss


@pytest.mark.parametrize("name", [n for n, method in CATALOGUE.items() if method.batch_symmetric])
def test_the_order_of_the_images_in_a_batch_changes_nothing(name: str) -> None:
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    for this, method, student, teacher in every_variant(name):
        with this:
            for batch in batches(method):
                permuted = replace(batch, labels=batch.labels[order], indices=batch.indices[order])
                shuffled = [taps.changed(lambda value: value[order]) for taps in (student, teacher)]
                straight = loss_of(method, student, teacher, batch).item()
                assert loss_of(method, *shuffled, permuted).item() == pytest.approx(
                    straight, rel=1e-5
                )


@pytest.mark.parametrize("name", [n for n, method in CATALOGUE.items() if method.zero_at_equality])
def test_a_method_without_helpers_is_zero_where_both_networks_say_the_same(name: str) -> None:
    for this, method, taps, _ in every_variant(name, pairs=[("resnet8", "resnet8")], double=True):
        with this:
            # A method's own test file holds this rule for the pure function behind its helpers.
            compares = Tap.FLIPPED_INPUT_GRADIENT not in method.needs  # else a student with itself
            if compares and not list(method.parameters()):
                assert abs(method(taps, taps, batch_of(IMAGES)).item()) <= 1e-10


@every_method
def test_inputs_are_left_as_they_were(name: str) -> None:
    for this, method, *outputs in every_variant(name, pairs=PAIRS[:1]):
        with this:
            kept = [taps.changed(Tensor.clone) for taps in outputs]
            for batch in batches(method):
                loss_of(method, *outputs, batch)
                method.after_step()
            for now, before in zip(outputs, kept, strict=True):
                assert all(map(torch.equal, now.tensors(), before.tensors()))


@every_method
def test_nothing_waits_for_the_device(name: str) -> None:
    for this, method, student, teacher in every_variant(name, pairs=PAIRS[:1]):
        with this:
            for batch in batches(method):
                method.begin_epoch(batch.epoch, batch.epochs)
                assert_never_waits(method, student, teacher, batch)


@every_method
def test_another_object_goes_on_from_the_state_with_the_same_bits(name: str) -> None:
    where = pair_of_networks(*PAIRS[0])

    def step(method: Method, outputs: list[Taps], number: int) -> float:
        batch = batch_of(IMAGES, epoch=number, epochs=EPOCHS)
        loss = loss_of(method, leaves(outputs[0]), outputs[1], batch)
        if loss.requires_grad:
            method.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in method.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad, alpha=1e-3)
        method.after_step()
        return loss.item()

    for this, method, *outputs in every_variant(name, pairs=PAIRS[:1]):
        with this:
            step(method, outputs, 1)
            term = TermConfig.model_validate({"method": name, "params": method.params})
            (other,) = build_terms((term,), where, seed=5)
            state = {key: value.clone() for key, value in method.state_dict().items()}
            other.method.train().load_state_dict(state)
            for number in (2, 3):
                assert step(method, outputs, number) == step(other.method, outputs, number)
            states = method.state_dict(), other.method.state_dict()
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# Images that are mixed of two


def loss_and_gradients(method: Method, student: Taps, teacher: Taps, batch: Batch) -> list[Tensor]:
    state = copy.deepcopy(method.state_dict())
    shown = leaves(student)
    loss = loss_of(method, shown, teacher, batch)
    if loss.requires_grad:
        loss.backward()
    method.load_state_dict(state)
    gradients = [value.grad for value in (*shown.tensors(), *method.parameters())]
    method.zero_grad()
    return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]


@every_method
def test_a_method_does_with_mixed_images_what_it_says(name: str) -> None:
    """Two classes of which one has all the share are one class, to the bit."""
    others = (batch_of(IMAGES).labels + torch.tensor([1, 2, 3, 4, 5, 6])) % 10
    for this, method, student, teacher in every_variant(name, pairs=[PAIRS[1]]):
        with this:
            for batch in batches(method):
                plain, *of_one_class = (
                    loss_and_gradients(method, student, teacher, replace(batch, **changes))
                    for changes in (
                        {},
                        {"mixed": Mixed(others, torch.ones(IMAGES))},
                        {"mixed": Mixed(others, torch.full((IMAGES,), 0.6))},
                        {"labels": others, "mixed": Mixed(others, torch.full((IMAGES,), 0.6))},
                    )
                )
                same = [
                    all(torch.equal(one, other) for one, other in zip(plain, each, strict=True))
                    for each in of_one_class
                ]
                assert same[0]
                if method.mixing == "no labels":
                    assert all(same)
                if method.mixing == "dominant class":
                    assert same[1]
                if method.mixing == "soft targets" and Tap.LOGITS in method.needs:
                    assert not same[1]
