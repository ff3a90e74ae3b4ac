"""Neuron selectivity: the twin in both Gram forms, its zeros, dead channels, memory."""

from functools import cache

import pytest
import torch
from feature_methods import (
    batch_of,
    build,
    pair_of_networks,
    random,
    taps_of,
    watched,
)
from torch import Tensor
from torch.autograd import gradcheck

from kdcore.contract.layer_pairs import resolve_layers
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Taps
from kdcore.methods.nst import NST, Kernel, nst_loss
from tests.twins.nst import naive_nst


@cache
def small(student: str, teacher: str) -> tuple[NetworkPair, Taps, Taps]:
    """Two networks on small images, and float32 outputs of both for six of them."""
    where = pair_of_networks(student, teacher, image_size=(8, 12))
    ours, theirs = (taps.changed(Tensor.float) for taps in taps_of(where, 6))
    return where, ours, theirs


# Few channels and many positions, many channels and few positions, sizes to be matched, one
# channel, one position.
SIZES = [
    ((2, 3, 4, 6), (2, 3, 4, 6)),
    ((2, 9, 2, 1), (2, 12, 2, 1)),
    ((3, 2, 3, 8), (3, 5, 6, 4)),
    ((2, 4, 6, 5), (2, 7, 3, 2)),
    ((1, 1, 2, 3), (1, 4, 5, 5)),
    ((2, 5, 4, 4), (2, 3, 1, 1)),
]

KERNELS: tuple[Kernel, ...] = ("polynomial", "linear", "gaussian")

every_kernel = pytest.mark.parametrize("kernel", KERNELS)


@every_kernel
@pytest.mark.parametrize(("student_size", "teacher_size"), SIZES)
def test_the_loss_and_its_gradient_are_the_twins(
    student_size: tuple[int, ...], teacher_size: tuple[int, ...], kernel: Kernel
) -> None:
    student, teacher = random(*student_size, seed=1).requires_grad_(), random(*teacher_size, seed=2)
    loss, naive = (
        nst_loss(student, teacher, kernel=kernel),
        naive_nst(student, teacher, kernel=kernel),
    )
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8, abs=1e-15)
    # The twin's width depends on the student too, but neither side lets a gradient through it.
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-14)


@every_kernel
@pytest.mark.parametrize("positions", [(2, 1), (4, 6)])
def test_dead_channels_stay_members_of_the_sample(
    positions: tuple[int, int], kernel: Kernel
) -> None:
    student, teacher = random(2, 6, *positions, seed=1), random(2, 7, *positions, seed=2)
    student[:, 2], teacher[0, :3] = 0, 0
    expected = naive_nst(student, teacher, kernel=kernel).item()
    assert nst_loss(student, teacher, kernel=kernel).item() == pytest.approx(expected, rel=1e-8)
    fewer = naive_nst(student[:, [0, 1, 3, 4, 5]], teacher, kernel=kernel).item()
    assert abs(expected - fewer) > 1e-4


@pytest.mark.parametrize("kernel", ["polynomial", "linear"])
@pytest.mark.parametrize(("student_size", "teacher_size"), SIZES[:4])
def test_the_gradient_is_that_of_finite_differences(
    student_size: tuple[int, ...], teacher_size: tuple[int, ...], kernel: Kernel
) -> None:
    student, teacher = random(*student_size, seed=1).requires_grad_(), random(*teacher_size, seed=2)
    assert gradcheck(lambda value: nst_loss(value, teacher, kernel=kernel), student)


def test_the_gaussian_gradient_is_that_of_finite_differences_where_no_width_changes() -> None:
    # Orthogonal channels, all turned in one plane that holds one channel and one free direction:
    # distances within the student stay, and the teacher's channels are orthogonal to both.
    teacher = torch.eye(8, dtype=torch.float64)[4:7].reshape(1, 3, 8, 1)
    student = torch.eye(8, dtype=torch.float64)[:3].reshape(1, 3, 8, 1).requires_grad_()
    direction = torch.zeros(1, 3, 8, 1, dtype=torch.float64)
    direction[0, 0, 7] = 1
    (gradient,) = torch.autograd.grad(nst_loss(student, teacher, kernel="gaussian"), student)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (
            nst_loss(student + sign * step * direction, teacher, kernel="gaussian")
            for sign in (1, -1)
        )
    assert (gradient * direction).sum().item() == pytest.approx(
        ((ahead - behind) / (2 * step)).item(), abs=1e-9
    )


@every_kernel
@pytest.mark.parametrize("size", [(3, 4, 3, 5), (3, 20, 2, 2)])
def test_it_is_zero_for_the_same_channels_in_any_order_and_strength(
    size: tuple[int, ...], kernel: Kernel
) -> None:
    teacher = random(*size, seed=1)
    strength = random(*size[:2], 1, 1, seed=2).abs() + 0.1
    for student in (teacher.clone(), (strength * teacher).flip(1)):
        assert abs(nst_loss(student, teacher, kernel=kernel).item()) <= 1e-14
    assert nst_loss(random(*size, seed=3), teacher, kernel=kernel).item() > 1e-3


@every_kernel
def test_twice_the_same_channels_are_the_same_distribution(kernel: Kernel) -> None:
    teacher = random(2, 4, 3, 5, seed=1)
    assert abs(nst_loss(teacher.repeat(1, 2, 1, 1), teacher, kernel=kernel).item()) <= 1e-14


@every_kernel
@pytest.mark.parametrize("positions", [(2, 2), (8, 8)])
@pytest.mark.parametrize("dead", [slice(0, 1), slice(0, 12)], ids=str)
def test_dead_channels_have_moderate_gradients(
    dead: slice, positions: tuple[int, int], kernel: Kernel
) -> None:
    student = random(3, 12, *positions, seed=1).relu() + 0.01
    student[:, dead] = 0
    student.requires_grad_()
    nst_loss(student, random(3, 8, *positions, seed=2).relu(), kernel=kernel).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10


@every_kernel
def test_channels_that_are_all_alike_have_a_finite_gradient(kernel: Kernel) -> None:
    student = torch.ones(2, 6, 4, 4).requires_grad_()
    loss = nst_loss(student, torch.ones(2, 3, 4, 4), kernel=kernel)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-3


@every_kernel
@pytest.mark.parametrize("size", [(4, 24, 16, 16), (4, 64, 4, 4)])
def test_nothing_larger_than_the_maps_and_their_gram_matrices_is_made(
    size: tuple[int, int, int, int], kernel: Kernel
) -> None:
    images, channels, height, width = size
    student, teacher = random(*size, seed=1).requires_grad_(), random(*size, seed=2)
    with watched() as watch:
        nst_loss(student, teacher, kernel=kernel).backward()
    smaller = min(channels, height * width) if kernel == "polynomial" else channels
    assert watch.largest <= images * max(channels * height * width, smaller**2)


@every_kernel
def test_halves_are_computed_in_full(kernel: Kernel) -> None:
    student, teacher = 1e-5 * random(2, 4, 8, 8, seed=1).half(), random(2, 6, 8, 8, seed=2).half()
    expected = nst_loss(student.float(), teacher.float(), kernel=kernel)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nst_loss(student, teacher, kernel=kernel)
    assert torch.equal(loss, expected)


@every_kernel
@pytest.mark.parametrize("layers", ["all", "last", "stage1:stage2"])
def test_the_method_adds_up_over_its_pairs_of_layers(layers: str, kernel: Kernel) -> None:
    where = pair_of_networks("resnet8", "resnet14", image_size=(8, 12))
    student, teacher = taps_of(where, 2)
    expected = sum(
        naive_nst(student.maps[pair.student], teacher.maps[pair.teacher], kernel=kernel)
        for pair in resolve_layers(layers, where.student, where.teacher)
    )
    method = build("nst", where, layers=layers, kernel=kernel)
    assert method(student, teacher, batch_of(2)).item() == pytest.approx(float(expected), rel=1e-8)


def test_by_itself_it_has_the_published_settings() -> None:
    params = NST.Params()
    assert (params.weight, params.kernel, params.layers) == (50.0, "polynomial", "all")
