"""Correlation congruence: the twin, its kernels, order of a batch, no collapse."""

from functools import cache
from typing import Any

import pytest
import torch
from feature_methods import (
    batch_of,
    build,
    pair_of_networks,
    random,
    taps_of,
)
from torch import Tensor, nn
from torch.autograd import gradcheck

from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Taps
from kdcore.methods.cc import CC, cc_loss, correlations
from tests.twins.cc import naive_cc


@cache
def small(student: str, teacher: str) -> tuple[NetworkPair, Taps, Taps]:
    """Two networks on small images, and float32 outputs of both for six of them."""
    where = pair_of_networks(student, teacher, image_size=(8, 12))
    ours, theirs = (taps.changed(Tensor.float) for taps in taps_of(where, 6))
    return where, ours, theirs


# Images, the student's width, the teacher's.
SIZES = [(2, 3, 3), (5, 4, 9), (7, 12, 3)]

KERNELS: list[dict[str, Any]] = [
    {"kernel": "bilinear", "gamma": 0.4, "order": 2},
    {"kernel": "taylor", "gamma": 0.4, "order": 1},
    {"kernel": "taylor", "gamma": 0.4, "order": 2},
    {"kernel": "taylor", "gamma": 1.3, "order": 3},
    {"kernel": "taylor", "gamma": 2.0, "order": 7},
    {"kernel": "rbf", "gamma": 0.1, "order": 2},
    {"kernel": "rbf", "gamma": 2.0, "order": 2},
]

PUBLISHED = KERNELS[2]

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


@every_kernel
@pytest.mark.parametrize(("images", "student_width", "teacher_width"), SIZES)
def test_the_loss_and_its_gradient_are_the_twins(
    images: int, student_width: int, teacher_width: int, kernel: dict[str, Any]
) -> None:
    student = random(images, student_width, seed=1).requires_grad_()
    teacher = random(images, teacher_width, seed=2)
    loss, naive = cc_loss(student, teacher, **kernel), naive_cc(student, teacher, **kernel)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-14)


@every_kernel
def test_the_gradient_is_that_of_finite_differences(kernel: dict[str, Any]) -> None:
    student, teacher = random(5, 3, seed=1).requires_grad_(), random(5, 4, seed=2)
    assert gradcheck(lambda value: cc_loss(value, teacher, **kernel), student)


@every_kernel
def test_it_is_zero_where_all_cosines_are_equal(kernel: dict[str, Any]) -> None:
    teacher = random(6, 4, seed=1)
    rotation = torch.linalg.qr(random(4, 4, seed=2)).Q
    lengths = random(6, 1, seed=3).abs() + 0.1
    for student in (teacher.clone(), lengths * teacher @ rotation):
        assert abs(cc_loss(student, teacher, **kernel).item()) <= 1e-15
    assert cc_loss(random(6, 4, seed=4), teacher, **kernel).item() > 1e-4


def test_the_series_comes_ever_nearer_to_the_gaussian_kernel() -> None:
    embedding = random(32, 8, seed=1)
    exact = correlations(embedding, kernel="rbf", gamma=0.4, order=1)
    errors = [
        (correlations(embedding, kernel="taylor", gamma=0.4, order=order) - exact).abs().max()
        for order in (1, 2, 3, 12)
    ]
    assert errors == sorted(errors, reverse=True)
    # At cosine 1: 1 - e^-0.8 (1 + 0.8 + 0.32) = 0.047.
    assert errors[1].item() == pytest.approx(0.0474, abs=1e-4)
    assert errors[-1] < 1e-9


@every_kernel
def test_the_order_of_the_batch_does_not_matter_and_every_image_does(
    kernel: dict[str, Any],
) -> None:
    student, teacher = random(6, 4, seed=1), random(6, 5, seed=2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    loss = cc_loss(student, teacher, **kernel).item()
    assert cc_loss(student[order], teacher[order], **kernel).item() == pytest.approx(loss)
    # RepDistiller's form is zero where every second image is right.
    half_right = teacher.clone()
    half_right[::2] = random(3, 5, seed=3)
    assert cc_loss(half_right, teacher, **kernel).item() > 1e-4


def test_a_batch_of_one_is_zero_and_has_a_gradient() -> None:
    student = random(1, 4, seed=1).requires_grad_()
    loss = cc_loss(student, random(1, 6, seed=2), **PUBLISHED)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@every_kernel
@pytest.mark.parametrize("dead", [slice(0, 1), slice(0, 5), slice(0, 6)], ids=str)
def test_dead_embeddings_have_moderate_gradients(dead: slice, kernel: dict[str, Any]) -> None:
    student = random(6, 8, seed=1).relu()
    student[dead] = 0
    student.requires_grad_()
    cc_loss(student, random(6, 16, seed=2).relu(), **kernel).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1


@every_kernel
@pytest.mark.parametrize("projected", [False, True])
def test_the_method_compares_with_the_teachers_own_embedding(
    projected: bool, kernel: dict[str, Any]
) -> None:
    where = pair_of_networks("resnet8", "resnet50")
    student, teacher = taps_of(where, 4)
    method = build("cc", where, projected=projected, **kernel).double()
    shown = student.embedding
    if projected:
        assert isinstance(method.projector, nn.Linear)
        shown = shown @ method.projector.weight.T + method.projector.bias
        assert shown.shape == teacher.embedding.shape
    expected = naive_cc(shown, teacher.embedding, **kernel)
    assert method(student, teacher, batch_of(4)).item() == pytest.approx(expected.item(), rel=1e-8)


def test_no_helper_can_make_the_teachers_embeddings_alike() -> None:
    where = pair_of_networks("resnet8", "resnet8")
    student, teacher = taps_of(where, 16)
    assert not list(build("cc", where).parameters())
    method = build("cc", where, projected=True).double()
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = method(student, teacher, batch_of(16))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # All images in one direction, the answer of a pair of trained layers, is a bad answer here.
    with torch.no_grad():
        assert isinstance(method.projector, nn.Linear)
        method.projector.weight.zero_()
        collapsed = method(student, teacher, batch_of(16))
    assert collapsed.item() > 2 * losses[-1]


def test_by_itself_it_has_the_papers_kernel() -> None:
    params = CC.Params()
    assert (params.kernel, params.gamma, params.order) == ("taylor", 0.4, 2)
