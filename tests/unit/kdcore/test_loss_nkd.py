"""Normalised distillation: the twin, its lowest value, saturated logits."""

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
from torch.nn.functional import cross_entropy

from kdcore.methods.nkd import NKD, nkd_loss
from tests.twins.nkd import naive_nkd

PUBLISHED = {"nontarget_weight": 1.5, "temperature": 1.0}


@pytest.mark.parametrize("temperature", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("nontarget_weight", [0.0, 1.5, 3.5])
@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_the_loss_is_its_twin(
    images: int, classes: int, nontarget_weight: float, temperature: float
) -> None:
    student, teacher = (
        random_logits(images, classes, seed=1),
        random_logits(images, classes, seed=2),
    )
    labels = labels_of(images, classes)
    settings = {"nontarget_weight": nontarget_weight, "temperature": temperature}
    loss = nkd_loss(student, teacher, labels, **settings)
    expected = naive_nkd(student, teacher, labels, **settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


def test_the_gradient_is_that_of_finite_differences_and_of_the_twin() -> None:
    student = random_logits(3, 5, seed=1).requires_grad_()
    teacher, labels = random_logits(3, 5, seed=2), labels_of(3, 5)
    settings = {"nontarget_weight": 3.5, "temperature": 3.0}
    assert gradcheck(lambda logits: nkd_loss(logits, teacher, labels, **settings), student)
    (ours,) = torch.autograd.grad(nkd_loss(student, teacher, labels, **settings), student)
    (naive,) = torch.autograd.grad(naive_nkd(student, teacher, labels, **settings), student)
    assert torch.allclose(ours, naive, rtol=1e-7, atol=1e-12)


def test_the_second_part_is_least_where_the_non_targets_agree() -> None:
    teacher, labels = random_logits(4, 6, seed=1), labels_of(4, 6)

    def second(student: Tensor) -> float:
        both = nkd_loss(student, teacher, labels, nontarget_weight=1.0, temperature=2.0)
        first = nkd_loss(student, teacher, labels, nontarget_weight=0.0, temperature=2.0)
        return (both - first).item()

    least = second(teacher)
    # Whatever the target's logit is: the other probabilities are normalised.
    other_target = teacher.clone()
    other_target[torch.arange(4), labels] += 5
    assert second(other_target) == pytest.approx(least)
    assert all(second(teacher + random_logits(4, 6, seed=s)) > least + 1e-3 for s in range(2, 6))


def test_the_first_part_is_cross_entropy_for_a_teacher_that_is_sure_and_right() -> None:
    student, labels = random_logits(4, 6, seed=1), labels_of(4, 6)
    teacher = torch.full((4, 6), -1e4, dtype=torch.float64)
    teacher[torch.arange(4), labels] = 1e4
    loss = nkd_loss(student, teacher, labels, nontarget_weight=0.0, temperature=1.0)
    assert loss.item() == pytest.approx(cross_entropy(student, labels).item())
    wrong = nkd_loss(student, teacher.roll(1, 1), labels, nontarget_weight=0.0, temperature=1.0)
    assert wrong.item() == 0


def test_hard_logits_give_a_finite_loss_and_gradient() -> None:
    # The logarithm of a softmax would be minus infinity where a student is sure.
    assert_sound(lambda s, t: nkd_loss(s, t, labels_of(*s.shape), **PUBLISHED))


def test_halves_are_computed_in_full() -> None:
    assert_computes_halves_in_full(
        lambda s, t: nkd_loss(s, t, labels_of(*s.shape), nontarget_weight=3.5, temperature=3.0)
    )


def test_two_classes_are_refused_for_their_second_part_is_always_zero() -> None:
    student, teacher = random_logits(4, 2, seed=1), random_logits(4, 2, seed=2)
    labels = labels_of(4, 2)
    first = nkd_loss(student, teacher, labels, nontarget_weight=0.0, temperature=1.0)
    assert torch.equal(nkd_loss(student, teacher, labels, **PUBLISHED), first)
    with pytest.raises(ValueError, match="num_classes is 2, but must be >= 3"):
        NKD(NKD.Params(), pair_of_networks(2))


def test_the_method_computes_the_loss_with_its_settings() -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    settings = {"nontarget_weight": 2.0, "temperature": 2.5}
    nkd = build("nkd", **settings)
    expected = nkd_loss(student, teacher, labels_of(4, 10), **settings)
    assert torch.equal(term(nkd, student, teacher), expected)
    assert_no_gradient_for_the_teacher(nkd)
