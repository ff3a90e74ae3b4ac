"""Information theoretic transfer: the twin, what its two terms see, constant units."""

import math
from dataclasses import replace
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
from kdcore.methods.itrd import ITRD, correlation_loss, itrd_loss, mutual_information_loss
from tests.twins.itrd import naive_correlation, naive_itrd, naive_mutual_information

# Images, the student's width, the teacher's.
SIZES = [(2, 3, 3), (5, 4, 9), (7, 12, 3)]

WEIGHTS = {"correlation_weight": 2.0, "mutual_weight": 0.5}

every_alpha = pytest.mark.parametrize("alpha", [0.5, 1.01, 1.5, 2.0])


@cache
def small(student: str, teacher: str) -> tuple[NetworkPair, Taps, Taps]:
    """Two networks on small images, and float32 outputs of both for six of them."""
    where = pair_of_networks(student, teacher, image_size=(8, 12))
    ours, theirs = (taps.changed(Tensor.float) for taps in taps_of(where, 6))
    return where, ours, theirs


@every_alpha
@pytest.mark.parametrize(("images", "student_width", "teacher_width"), SIZES)
def test_the_loss_and_its_gradients_are_the_twins(
    images: int, student_width: int, teacher_width: int, alpha: float
) -> None:
    student = random(images, student_width, seed=1).requires_grad_()
    teacher = random(images, teacher_width, seed=2)
    projected = random(images, teacher_width, seed=3).requires_grad_()
    loss = itrd_loss(student, teacher, projected, alpha=alpha, **WEIGHTS)
    naive = naive_itrd(student, teacher, projected, alpha=alpha, **WEIGHTS)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    ours = torch.autograd.grad(loss, (student, projected))
    theirs = torch.autograd.grad(naive, (student, projected))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.5])
def test_the_gradient_is_that_of_finite_differences(alpha: float) -> None:
    student, teacher = random(5, 3, seed=1).requires_grad_(), random(5, 4, seed=2)
    projected = random(5, 4, seed=3).requires_grad_()
    assert gradcheck(
        lambda one, two: itrd_loss(one, teacher, two, alpha=alpha, **WEIGHTS), (student, projected)
    )


# Correlation


@every_alpha
@pytest.mark.parametrize("images", [2, 8, 64])
def test_correlation_is_finite_and_smallest_where_every_unit_agrees(
    images: int, alpha: float
) -> None:
    teacher = random(images, 5, seed=1)
    projected = random(1, 5, seed=2).abs() * teacher + random(1, 5, seed=3)
    smallest = math.log2(5) - 2 * alpha * math.log2(images)
    assert correlation_loss(projected, teacher, alpha=alpha).item() == pytest.approx(smallest)
    for seed in range(4, 9):
        other = correlation_loss(random(images, 5, seed=seed), teacher, alpha=alpha).item()
        assert other >= smallest - 1e-9


def test_correlation_is_largest_where_every_unit_is_turned_round() -> None:
    teacher = random(8, 5, seed=1)
    turned = correlation_loss(-teacher, teacher, alpha=1.5).item()
    assert turned == pytest.approx(math.log2(5) + 3 * math.log2(15 / 8))
    assert turned > correlation_loss(random(8, 5, seed=2), teacher, alpha=1.5).item()


def test_correlation_does_not_mix_units() -> None:
    teacher = random(8, 2, seed=1)
    same = correlation_loss(teacher, teacher, alpha=1.5).item()
    assert correlation_loss(teacher.flip(1), teacher, alpha=1.5).item() > same + 1


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
def test_a_constant_unit_counts_as_uncorrelated_with_a_moderate_gradient(
    constant: str, offset: float
) -> None:
    # Dividing by a deviation of zero gives NaN.
    projected, teacher = random(8, 3, seed=1).float(), random(8, 3, seed=2).float()
    if constant != "teacher":
        projected[:, 1] = offset
    if constant != "student":
        teacher[:, 1] = offset
    projected.requires_grad_()
    loss = correlation_loss(projected, teacher, alpha=1.5)
    loss.backward()
    others = naive_correlation(projected[:, ::2].double(), teacher[:, ::2].double(), alpha=1.5)
    assert loss.item() == pytest.approx(math.log2(2 ** others.item() + 1), rel=1e-4)
    assert projected.grad is not None
    assert projected.grad.isfinite().all()
    assert projected.grad.abs().max() < 1e3


# Mutual information


def test_mutual_information_is_zero_for_an_orthogonal_student_or_a_parallel_teacher() -> None:
    student, teacher = random(5, 8, seed=1), random(5, 4, seed=2)
    orthogonal = torch.linalg.qr(random(8, 8, seed=3)).Q[:5] * (1 + torch.arange(5)[:, None])
    parallel = random(5, 1, seed=4) * random(1, 4, seed=5)
    assert abs(mutual_information_loss(orthogonal, teacher).item()) <= 1e-14
    assert abs(mutual_information_loss(student, parallel).item()) <= 1e-14
    assert mutual_information_loss(student, teacher).item() > 1e-3


def test_mutual_information_lies_between_zero_and_one() -> None:
    for images in (1, 2, 9):
        loss = mutual_information_loss(random(images, 3, seed=images), random(images, 6, seed=20))
        assert -1e-15 <= loss.item() < 1
    parallel = torch.ones(9, 3, dtype=torch.float64)
    # |G_s|^2 = 1, |G_s o G_t|^2 = |1 / 9|^2 = 1 / 9.
    worst = mutual_information_loss(parallel, torch.eye(9, dtype=torch.float64)).item()
    assert worst == pytest.approx(1 - 1 / 9)


def test_mutual_information_does_not_see_lengths_and_turns() -> None:
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    rotation = torch.linalg.qr(random(4, 4, seed=3)).Q
    lengths = random(6, 1, seed=4).abs() + 0.1
    straight = mutual_information_loss(student, teacher).item()
    turned = mutual_information_loss(lengths * student @ rotation, teacher @ rotation)
    assert turned.item() == pytest.approx(straight)


def test_dead_embeddings_leave_the_traces_of_the_others() -> None:
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    student[4:], teacher[3:] = 0, 0
    student.requires_grad_()
    loss = mutual_information_loss(student, teacher)
    loss.backward()
    shown, both = student.detach()[:4], slice(0, 3)
    joint = naive_mutual_information(shown[both], teacher[both])
    expected = joint + (_purity(shown) - _purity(shown[both]))
    assert loss.item() == pytest.approx(expected.item())
    assert student.grad is not None
    assert not student.grad[4:].any()
    assert mutual_information_loss(torch.zeros(3, 4), torch.zeros(3, 2)).item() == 0


def _purity(embedding: Tensor) -> Tensor:
    unit = embedding / embedding.norm(dim=1, keepdim=True)
    return (unit @ unit.T / len(unit)).square().sum()


# The method


def test_a_batch_of_one_is_zero_and_has_gradients() -> None:
    student, projected = (
        random(1, 4, seed=1).requires_grad_(),
        random(1, 6, seed=2).requires_grad_(),
    )
    loss = itrd_loss(student, random(1, 6, seed=3), projected, alpha=1.5, **WEIGHTS)
    loss.backward()
    assert loss.item() == 0
    for leaf in (student, projected):
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize("teacher_name", ["resnet14", "resnet50"])
def test_the_projector_serves_the_second_term_only_where_widths_differ(teacher_name: str) -> None:
    where = pair_of_networks("resnet8", teacher_name, image_size=(8, 12))
    student, teacher = taps_of(where, 4)
    # Without the units that the ReLU kills in all four images, which the twin divides by zero.
    teacher = replace(teacher, embedding=random(*teacher.embedding.shape, seed=3))
    method = build("itrd", where, alpha=1.2, **WEIGHTS).double()
    assert isinstance(method, ITRD)
    projected = student.embedding @ method.projector.weight.T
    shown = student.embedding if teacher_name == "resnet14" else projected
    expected = naive_itrd(shown, teacher.embedding, projected, alpha=1.2, **WEIGHTS)
    assert method(student, teacher, batch_of(4)).item() == pytest.approx(expected.item(), rel=1e-8)
