"""Refined logits: the twin, its tie to dkd, what a wrong teacher teaches, saturated logits."""

import pytest
import torch
from logit_methods import (
    SIZES,
    assert_computes_halves_in_full,
    assert_no_gradient_for_the_teacher,
    assert_sound,
    build,
    labels_of,
    pair_of_networks,
    random_logits,
    term,
)
from torch import Tensor
from torch.autograd import gradcheck

from kdcore.contract.taps import Mixed
from kdcore.methods.dkd import dkd_loss
from kdcore.methods.rld import RLD, rld_loss
from tests.twins.rld import naive_rld

PUBLISHED = {
    "confidence_weight": 1.0,
    "correlation_weight": 8.0,
    "confidence_temperature": 1.0,
    "temperature": 4.0,
}
FIRST = {**PUBLISHED, "correlation_weight": 0.0}
SECOND = {**PUBLISHED, "confidence_weight": 0.0}


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (1.0, 4.0), (3.0, 8.0)], ids=str)
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 8.0)], ids=str)
@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_the_loss_is_its_twin(
    images: int,
    classes: int,
    weights: tuple[float, float],
    temperatures: tuple[float, float],
    standardize: bool,
) -> None:
    # The guard against constant rows, 1e-8 in the variance, drowns in logits of 100.
    scale = 100.0 if standardize else 3.0
    student = random_logits(images, classes, seed=1, scale=scale)
    teacher = random_logits(images, classes, seed=2, scale=scale)
    labels = labels_of(images, classes)
    settings = {
        "confidence_weight": weights[0],
        "correlation_weight": weights[1],
        "confidence_temperature": temperatures[0],
        "temperature": temperatures[1],
        "standardize": standardize,
    }
    loss = rld_loss(student, teacher, labels, **settings)
    expected = naive_rld(student, teacher, labels, **settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_gradient_is_that_of_finite_differences_and_of_the_twin(standardize: bool) -> None:
    student = random_logits(4, 5, seed=1, scale=4).requires_grad_()
    teacher, labels = random_logits(4, 5, seed=2, scale=4), labels_of(4, 5)
    settings = {**PUBLISHED, "standardize": standardize}
    assert gradcheck(lambda logits: rld_loss(logits, teacher, labels, **settings), student)
    (ours,) = torch.autograd.grad(rld_loss(student, teacher, labels, **settings), student)
    (naive,) = torch.autograd.grad(naive_rld(student, teacher, labels, **settings), student)
    assert torch.allclose(ours, naive, rtol=1e-7, atol=1e-9)


def test_of_a_teacher_that_is_right_about_all_it_is_dkd() -> None:
    student, teacher = random_logits(5, 7, seed=1), random_logits(5, 7, seed=2)
    labels = teacher.argmax(1)
    settings = {**PUBLISHED, "confidence_temperature": 4.0}
    decoupled = dkd_loss(
        student, teacher, labels, target_weight=1.0, nontarget_weight=8.0, temperature=4.0
    )
    assert rld_loss(student, teacher, labels, **settings).item() == pytest.approx(decoupled.item())
    assert rld_loss(teacher + 1, teacher, labels, **settings).item() == pytest.approx(0, abs=1e-12)


def test_a_wrong_teacher_teaches_how_sure_to_be_and_not_of_what() -> None:
    teacher = torch.tensor([[5.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    label = torch.tensor([1])
    student = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(rld_loss(student, teacher, label, **FIRST), student)
    # Descent raises the true class, which the teacher holds for unlikely, and lowers all others.
    assert gradient[0, 1] < 0
    assert (gradient[0, [0, 2, 3]] > 0).all()
    # The second part sees neither the true class nor the one that the teacher prefers.
    (gradient,) = torch.autograd.grad(rld_loss(student, teacher, label, **SECOND), student)
    assert not gradient[0, :2].any()
    assert gradient[0, 2] < 0 < gradient[0, 3]


def test_where_the_teacher_ranks_nothing_below_the_true_class_only_confidence_is_taught() -> None:
    teacher = random_logits(3, 6, seed=1)
    labels = teacher.argmin(1)
    student = random_logits(3, 6, seed=2).requires_grad_()
    loss = rld_loss(student, teacher, labels, **SECOND)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()
    # One class below it is no order either.
    second_lowest = teacher.argsort(1)[:, 1]
    assert abs(rld_loss(student, teacher, second_lowest, **SECOND).item()) < 1e-12


@pytest.mark.parametrize("standardize", [False, True])
def test_hard_logits_give_a_finite_loss_and_gradient(standardize: bool) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        labels = labels_of(*student.shape)
        return rld_loss(student, teacher, labels, **PUBLISHED, standardize=standardize)

    assert_sound(loss)


def test_halves_are_computed_in_full() -> None:
    assert_computes_halves_in_full(
        lambda s, t: rld_loss(s, t, labels_of(*s.shape), **PUBLISHED, standardize=True)
    )


def test_a_mixed_image_has_the_mean_over_a_target_that_is_drawn_by_the_shares() -> None:
    student, teacher = random_logits(1, 6, seed=1), random_logits(1, 6, seed=2)
    first, second = torch.tensor([2]), torch.tensor([5])
    mixed = Mixed(second, torch.tensor([0.7], dtype=torch.float64))
    loss = rld_loss(student, teacher, first, **PUBLISHED, mixed=mixed).item()
    apart = [rld_loss(student, teacher, each, **PUBLISHED).item() for each in (first, second)]
    assert loss == pytest.approx(0.7 * apart[0] + 0.3 * apart[1])


def test_two_classes_are_refused_for_their_second_part_is_always_zero() -> None:
    student, teacher = random_logits(4, 2, seed=1), random_logits(4, 2, seed=2)
    assert rld_loss(student, teacher, labels_of(4, 2), **SECOND).item() == 0
    with pytest.raises(ValueError, match="num_classes is 2, but must be >= 3"):
        RLD(RLD.Params(), pair_of_networks(2))


def test_the_loss_rises_over_the_first_epochs() -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    full = rld_loss(student, teacher, labels_of(4, 10), **PUBLISHED).item()
    shares = [
        term(build("rld"), student, teacher, epoch=epoch, epochs=240).item() / full
        for epoch in (1, 10, 20, 21, 240)
    ]
    assert shares == pytest.approx([1 / 20, 1 / 2, 1, 1, 1])


def test_the_method_computes_the_loss_with_its_settings() -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    settings = {
        "confidence_weight": 0.5,
        "correlation_weight": 2.0,
        "confidence_temperature": 1.5,
        "temperature": 2.5,
        "standardize": True,
    }
    rld = build("rld", **settings)
    expected = rld_loss(student, teacher, labels_of(4, 10), **settings)
    assert torch.equal(term(rld, student, teacher), expected)
    assert_no_gradient_for_the_teacher(rld)
