"""Similarity preservation: the twin, its zeros, dead maps, weight and batch size."""

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

from kdcore.contract.layer_pairs import resolve_layers
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Taps
from kdcore.methods.sp import SP, similarities, sp_loss
from tests.twins.sp import naive_sp


@cache
def small(student: str, teacher: str) -> tuple[NetworkPair, Taps, Taps]:
    """Two networks on small images, and float32 outputs of both for six of them."""
    where = pair_of_networks(student, teacher, image_size=(8, 12))
    ours, theirs = (taps.changed(Tensor.float) for taps in taps_of(where, 6))
    return where, ours, theirs


# Other channels, sides that are not square, either side the larger one.
SIZES = [
    ((2, 3, 4, 4), (2, 3, 4, 4)),
    ((5, 2, 3, 6), (5, 7, 6, 3)),
    ((4, 8, 5, 2), (4, 1, 1, 1)),
    ((3, 1, 1, 1), (3, 6, 4, 5)),
]

both_scales = pytest.mark.parametrize("batch_scaled", [False, True])


@both_scales
@pytest.mark.parametrize(("student_size", "teacher_size"), SIZES)
def test_the_loss_and_its_gradient_are_the_twins(
    student_size: tuple[int, ...], teacher_size: tuple[int, ...], batch_scaled: bool
) -> None:
    student, teacher = random(*student_size, seed=1).requires_grad_(), random(*teacher_size, seed=2)
    loss = sp_loss(student, teacher, batch_scaled=batch_scaled)
    naive = naive_sp(student, teacher, batch_scaled=batch_scaled)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-14)


@both_scales
def test_the_gradient_is_that_of_finite_differences(batch_scaled: bool) -> None:
    student, teacher = random(4, 2, 3, 2, seed=1).requires_grad_(), random(4, 3, 2, 2, seed=2)
    assert gradcheck(lambda value: sp_loss(value, teacher, batch_scaled=batch_scaled), student)


def test_it_is_zero_for_the_same_map_whatever_its_scale_and_the_order_of_its_values() -> None:
    teacher = random(5, 3, 4, 2, seed=1)
    other_order = 7 * teacher.flip(1).transpose(2, 3)
    for student in (teacher.clone(), other_order):
        assert abs(sp_loss(student, teacher, batch_scaled=False).item()) <= 1e-15
    assert sp_loss(random(5, 3, 4, 2, seed=2), teacher, batch_scaled=False).item() > 1e-3


def test_a_batch_of_one_is_zero_and_has_a_gradient() -> None:
    student = random(1, 3, 2, 2, seed=1).requires_grad_()
    loss = sp_loss(student, torch.zeros(1, 3, 2, 2), batch_scaled=False)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_the_rows_of_similarities_have_length_one() -> None:
    lengths = similarities(1e-3 * random(6, 8, 4, 4, seed=1).float()).norm(dim=1)
    assert lengths.tolist() == pytest.approx([1.0] * 6, rel=1e-6)


def test_the_mean_falls_with_the_batch_and_the_scaled_one_does_not() -> None:
    def loss(images: int, batch_scaled: bool) -> float:
        maps = random(images, 8, 4, 4, seed=1).relu(), random(images, 16, 4, 4, seed=2).relu()
        return sp_loss(*maps, batch_scaled=batch_scaled).item()

    assert loss(64, True) == loss(64, False)
    assert loss(16, True) == pytest.approx(loss(16, False) / 4)
    assert loss(16, False) / loss(256, False) == pytest.approx(16, rel=0.3)
    assert loss(16, True) / loss(256, True) == pytest.approx(1, rel=0.3)


def test_products_beyond_float16_are_harmless() -> None:
    # 64 channels of 8 x 8 squares of 10: 409,600, where float16 ends at 65,504.
    student = (10 + random(4, 64, 8, 8, seed=1)).half()
    teacher = (10 + random(4, 64, 8, 8, seed=2)).half()
    expected = sp_loss(student.double(), teacher.double(), batch_scaled=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sp_loss(student, teacher, batch_scaled=False)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("dead", [slice(0, 1), slice(0, 5), slice(0, 6)], ids=str)
def test_dead_maps_have_moderate_gradients(dead: slice) -> None:
    # Dividing a zero row by 1e-12 would make gradients of 1e11.
    student = random(6, 3, 4, 4, seed=1).relu()
    student[dead] = 0
    student.requires_grad_()
    sp_loss(student, random(6, 4, 4, 4, seed=2).relu(), batch_scaled=False).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1


@both_scales
@pytest.mark.parametrize("layers", ["last", "all", "stage1:stage2"])
def test_the_method_adds_up_over_its_pairs_of_layers(layers: str, batch_scaled: bool) -> None:
    where = pair_of_networks("resnet8", "resnet50")
    student, teacher = taps_of(where, 3)
    expected = sum(
        naive_sp(student.maps[pair.student], teacher.maps[pair.teacher], batch_scaled=batch_scaled)
        for pair in resolve_layers(layers, where.student, where.teacher)
    )
    method = build("sp", where, layers=layers, batch_scaled=batch_scaled)
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(float(expected), rel=1e-8)


def test_by_itself_it_compares_the_last_maps_as_published() -> None:
    params = SP.Params()
    assert (params.weight, params.layers, params.batch_scaled) == (3000.0, "last", False)
