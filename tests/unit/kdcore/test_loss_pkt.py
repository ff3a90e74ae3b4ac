"""Probabilistic transfer: the twin, its zeros, the reductions, small divergences."""

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
from kdcore.methods.pkt import PKT, Reduction, affinities, pkt_loss
from tests.twins.pkt import naive_pkt


@cache
def small(student: str, teacher: str) -> tuple[NetworkPair, Taps, Taps]:
    """Two networks on small images, and float32 outputs of both for six of them."""
    where = pair_of_networks(student, teacher, image_size=(8, 12))
    ours, theirs = (taps.changed(Tensor.float) for taps in taps_of(where, 6))
    return where, ours, theirs


# Images, the student's width, the teacher's.
SIZES = [(2, 3, 3), (5, 4, 9), (7, 12, 3)]

every_reduction = pytest.mark.parametrize("reduction", ["pairs", "rows"])


@every_reduction
@pytest.mark.parametrize(("images", "student_width", "teacher_width"), SIZES)
def test_the_loss_and_its_gradient_are_the_twins(
    images: int, student_width: int, teacher_width: int, reduction: Reduction
) -> None:
    student = random(images, student_width, seed=1).requires_grad_()
    teacher = random(images, teacher_width, seed=2)
    loss = pkt_loss(student, teacher, reduction=reduction)
    naive = naive_pkt(student, teacher, reduction=reduction)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-14)


@every_reduction
def test_the_gradient_is_that_of_finite_differences(reduction: Reduction) -> None:
    student, teacher = random(5, 3, seed=1).requires_grad_(), random(5, 4, seed=2)
    assert gradcheck(lambda value: pkt_loss(value, teacher, reduction=reduction), student)


def test_it_is_zero_where_all_cosines_are_equal() -> None:
    teacher = random(6, 4, seed=1)
    rotation = torch.linalg.qr(random(4, 4, seed=2)).Q
    lengths = random(6, 1, seed=3).abs() + 0.1
    for student in (teacher.clone(), lengths * teacher @ rotation):
        assert abs(pkt_loss(student, teacher, reduction="pairs").item()) <= 1e-15
    assert pkt_loss(random(6, 4, seed=4), teacher, reduction="pairs").item() > 1e-3


def test_it_weighs_by_the_teachers_probabilities() -> None:
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    there = pkt_loss(student, teacher, reduction="rows").item()
    assert abs(there - pkt_loss(teacher, student, reduction="rows").item()) > 1e-4


def test_a_batch_of_one_is_zero_and_has_a_gradient() -> None:
    student = random(1, 4, seed=1).requires_grad_()
    loss = pkt_loss(student, random(1, 6, seed=2), reduction="pairs")
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_the_mean_over_pairs_falls_with_the_batch_and_that_over_rows_does_not() -> None:
    def loss(images: int, reduction: Reduction) -> float:
        embeddings = random(images, 16, seed=1).relu(), random(images, 32, seed=2).relu()
        return pkt_loss(*embeddings, reduction=reduction).item()

    assert loss(64, "rows") == pytest.approx(64 * loss(64, "pairs"))
    assert loss(16, "pairs") / loss(256, "pairs") == pytest.approx(16, rel=0.3)
    assert loss(16, "rows") / loss(256, "rows") == pytest.approx(1, rel=0.3)


def test_a_small_divergence_keeps_its_digits_and_never_is_negative() -> None:
    # Terms p log(p / q) of 1e-5, rounded at log p = -4, add up to 1e-9.
    teacher = random(64, 32, seed=1).relu().float()
    student = teacher + 1e-3 * random(64, 32, seed=2).float()
    loss = pkt_loss(student, teacher, reduction="rows").item()
    exact = pkt_loss(student.double(), teacher.double(), reduction="rows").item()
    assert exact < 1e-7
    assert loss == pytest.approx(exact, rel=0.05)
    assert loss > 0


def test_opposite_embeddings_have_a_finite_divergence() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-3.0, 1e-9]]).requires_grad_()
    loss = pkt_loss(student, torch.ones(3, 2), reduction="pairs")
    loss.backward()
    assert affinities(student.detach()).min() == pytest.approx(1e-7)
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dead", [slice(0, 1), slice(0, 5), slice(0, 6)], ids=str)
def test_dead_embeddings_have_moderate_gradients(dead: slice) -> None:
    student = random(6, 8, seed=1).relu()
    student[dead] = 0
    student.requires_grad_()
    pkt_loss(student, random(6, 16, seed=2).relu(), reduction="rows").backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1


def test_a_nan_is_not_hidden() -> None:
    student = random(4, 3, seed=1)
    student[2, 1] = float("nan")
    before = student.clone()
    assert pkt_loss(student, random(4, 3, seed=2), reduction="pairs").isnan()
    assert torch.equal(student.nan_to_num(7.0), before.nan_to_num(7.0))


@every_reduction
def test_the_method_computes_the_loss_with_its_settings(reduction: Reduction) -> None:
    where = pair_of_networks("resnet8", "resnet50")
    student, teacher = taps_of(where, 4)
    expected = pkt_loss(student.embedding, teacher.embedding, reduction=reduction)
    method = build("pkt", where, reduction=reduction)
    assert torch.equal(method(student, teacher, batch_of(4)), expected)


def test_both_reductions_have_their_published_weight_in_the_span() -> None:
    params = PKT.Params()
    assert (params.weight, params.reduction) == (30000.0, "pairs")
    span = PKT.Params.searched()["weight"]
    assert span.low <= params.weight / 64 <= span.high
