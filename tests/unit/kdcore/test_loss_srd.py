"""The projector: the twin, its smallest value, the soft maximum, constant units."""

import math
from functools import cache

import pytest
import torch
from feature_methods import (
    batch_of,
    build,
    pair_of_networks,
    random,
    taps_of,
)
from torch import Tensor
from torch.autograd import gradcheck

from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Taps
from kdcore.methods.srd import SRD, srd_loss
from tests.twins.srd import naive_srd

every_exponent = pytest.mark.parametrize("exponent", [1.0, 2.5, 4.0, 8.0])


@cache
def small(student: str, teacher: str) -> tuple[NetworkPair, Taps, Taps]:
    """Two networks on small images, and float32 outputs of both for six of them."""
    where = pair_of_networks(student, teacher, image_size=(8, 12))
    ours, theirs = (taps.changed(Tensor.float) for taps in taps_of(where, 6))
    return where, ours, theirs


@every_exponent
@pytest.mark.parametrize("size", [(2, 3), (5, 9), (16, 1)], ids=str)
def test_the_loss_and_its_gradient_are_the_twins(size: tuple[int, int], exponent: float) -> None:
    projected, teacher = random(*size, seed=1).requires_grad_(), random(*size, seed=2)
    loss = srd_loss(projected, teacher, exponent=exponent)
    naive = naive_srd(projected, teacher, exponent=exponent)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    (ours,) = torch.autograd.grad(loss, projected)
    (theirs,) = torch.autograd.grad(naive, projected)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


@every_exponent
def test_the_gradient_is_that_of_finite_differences(exponent: float) -> None:
    projected, teacher = random(5, 3, seed=1).requires_grad_(), random(5, 3, seed=2)
    assert gradcheck(lambda value: srd_loss(value, teacher, exponent=exponent), projected)


@every_exponent
def test_it_is_finite_and_smallest_where_every_unit_agrees(exponent: float) -> None:
    teacher = random(8, 5, seed=1).float()
    projected = (teacher + random(1, 5, seed=2).float()).requires_grad_()
    loss = srd_loss(projected, teacher, exponent=exponent)
    loss.backward()
    assert loss.item() == pytest.approx(exponent * math.log(0.01))
    assert projected.grad is not None
    assert projected.grad.isfinite().all()
    assert srd_loss(random(8, 5, seed=3).float(), teacher, exponent=exponent) > loss


@every_exponent
def test_the_gradient_stays_moderate_on_the_way_there(exponent: float) -> None:
    teacher = random(8, 5, seed=1)
    for distance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6):
        projected = (teacher + distance * random(8, 5, seed=2)).requires_grad_()
        srd_loss(projected, teacher, exponent=exponent).backward()
        assert projected.grad is not None
        assert projected.grad.abs().max() < 200 * exponent


def test_scale_and_shift_of_a_unit_are_normalised_away() -> None:
    projected, teacher = random(8, 5, seed=1), random(8, 5, seed=2)
    moved = 10 * random(1, 5, seed=3).abs() * projected + random(1, 5, seed=4)
    straight = srd_loss(projected, teacher, exponent=4.0).item()
    # But for the epsilon of the batch norms, 1e-4 beside variances of 1.
    assert srd_loss(moved, teacher, exponent=4.0).item() == pytest.approx(straight, rel=1e-2)


def test_a_larger_exponent_looks_at_the_largest_difference() -> None:
    projected, teacher = random(8, 5, seed=1), random(8, 5, seed=2)
    shares = []
    for exponent in (1.0, 4.0, 16.0):
        leaf = projected.clone().requires_grad_()
        normal = (leaf - leaf.mean(0)) / leaf.std(0, correction=0)
        target = (teacher - teacher.mean(0)) / teacher.std(0, correction=0)
        powers = (normal - target).abs() ** exponent
        shares.append((powers.max() / powers.sum()).item())
        loss = srd_loss(leaf, teacher, exponent=exponent).item()
        assert loss == pytest.approx(powers.sum().log().item(), rel=1e-2)
    assert shares[0] < 0.15
    assert shares[2] > 0.5


def test_more_images_and_units_only_shift_it() -> None:
    # log(n x) = log(n) + log(x): a gradient of one size for all sizes, up to the mean over images.
    projected, teacher = random(8, 5, seed=1), random(8, 5, seed=2)
    once = srd_loss(projected, teacher, exponent=4.0).item()
    twice = srd_loss(projected.repeat(2, 1), teacher.repeat(2, 1), exponent=4.0).item()
    wider = srd_loss(projected.repeat(1, 3), teacher.repeat(1, 3), exponent=4.0).item()
    assert twice - once == pytest.approx(math.log(2))
    assert wider - once == pytest.approx(math.log(3))


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
def test_constant_units_have_a_finite_gradient(constant: str, offset: float) -> None:
    projected, teacher = random(8, 3, seed=1).float(), random(8, 3, seed=2).float()
    if constant != "teacher":
        projected[:] = offset
    if constant != "student":
        teacher[:] = offset
    projected.requires_grad_()
    loss = srd_loss(projected, teacher, exponent=4.0)
    loss.backward()
    assert loss.isfinite()
    assert projected.grad is not None
    assert projected.grad.isfinite().all()
    # The deviation is at least the root of epsilon, 0.01.
    assert projected.grad.abs().max() < 100


def test_a_batch_of_one_is_zero_and_has_a_gradient() -> None:
    projected = random(1, 4, seed=1).requires_grad_()
    loss = srd_loss(projected, random(1, 4, seed=2), exponent=4.0)
    loss.backward()
    assert loss.item() == 0
    assert projected.grad is not None
    assert not projected.grad.any()


def test_powers_of_halves_stay_finite() -> None:
    projected, teacher = 300 * random(8, 4, seed=1).half(), random(8, 4, seed=2).half()
    with torch.autocast("cpu", torch.bfloat16):
        loss = srd_loss(projected, teacher, exponent=8.0)
    assert torch.equal(loss, srd_loss(projected.float(), teacher.float(), exponent=8.0))
    assert loss.isfinite()


@pytest.mark.parametrize("teacher_name", ["resnet14", "resnet50"])
def test_the_method_projects_to_the_teachers_width(teacher_name: str) -> None:
    where = pair_of_networks("resnet8", teacher_name, image_size=(8, 12))
    student, teacher = taps_of(where, 4)
    method = build("srd", where, exponent=3.0).double()
    assert isinstance(method, SRD)
    projected = student.embedding @ method.projector.weight.T
    expected = naive_srd(projected, teacher.embedding, exponent=3.0)
    assert method(student, teacher, batch_of(4)).item() == pytest.approx(expected.item(), rel=1e-8)
    assert [name for name, _ in method.named_parameters()] == ["projector.weight"]
