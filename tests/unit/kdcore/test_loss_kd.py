"""Softened class probabilities: the twin, standardised logits."""

import math

import pytest
import torch
from logit_methods import (
    SIZES,
    assert_computes_halves_in_full,
    assert_no_gradient_for_the_teacher,
    assert_sound,
    build,
    pair_of_networks,
    random_logits,
    term,
)
from torch.autograd import gradcheck

from kdcore.methods.kd import KD, kd_loss
from tests.twins.kd import naive_kd


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 16.0])
@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_the_loss_is_its_twin(
    images: int, classes: int, temperature: float, standardize: bool
) -> None:
    # The guard against constant rows, 1e-8 in the variance, drowns in logits of 100.
    scale = 100.0 if standardize else 5.0
    student = random_logits(images, classes, seed=1, scale=scale)
    teacher = random_logits(images, classes, seed=2, scale=scale)
    settings = {"temperature": temperature, "standardize": standardize}
    loss = kd_loss(student, teacher, **settings)
    assert loss.item() == pytest.approx(naive_kd(student, teacher, **settings).item(), rel=1e-8)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_gradient_is_that_of_finite_differences_and_of_the_twin(standardize: bool) -> None:
    student = random_logits(3, 5, seed=1, scale=10).requires_grad_()
    teacher = random_logits(3, 5, seed=2, scale=10)
    settings = {"temperature": 2.0, "standardize": standardize}
    assert gradcheck(lambda logits: kd_loss(logits, teacher, **settings), student)
    (ours,) = torch.autograd.grad(kd_loss(student, teacher, **settings), student)
    (naive,) = torch.autograd.grad(naive_kd(student, teacher, **settings), student)
    assert torch.allclose(ours, naive, rtol=1e-7, atol=1e-12)


def test_standardised_logits_are_compared_up_to_shift_and_scale_of_each_row() -> None:
    student = random_logits(4, 6, seed=1)
    scales = torch.tensor([[0.5], [1.0], [3.0], [20.0]], dtype=torch.float64)
    moved = scales * student + random_logits(4, 1, seed=2)
    plain = kd_loss(student, moved, temperature=2.0)
    standardised = kd_loss(student, moved, temperature=2.0, standardize=True)
    assert plain.item() > 0.1
    assert abs(standardised.item()) <= 1e-10
    opposite = kd_loss(student, -moved, temperature=2.0, standardize=True)
    assert opposite.item() > 0.1


@pytest.mark.parametrize("standardize", [False, True])
def test_hard_logits_give_a_finite_loss_and_gradient(standardize: bool) -> None:
    assert_sound(lambda s, t: kd_loss(s, t, temperature=4.0, standardize=standardize))


@pytest.mark.parametrize("standardize", [False, True])
def test_halves_are_computed_in_full(standardize: bool) -> None:
    # In bfloat16 the loss would be wrong by some 3 percent.
    assert_computes_halves_in_full(
        lambda s, t: kd_loss(s, t, temperature=4.0, standardize=standardize)
    )


def test_a_class_that_both_networks_rule_out_counts_for_nothing() -> None:
    student, teacher = random_logits(3, 4, seed=1), random_logits(3, 4, seed=2)
    impossible = torch.full((3, 1), -math.inf, dtype=torch.float64)
    loss = kd_loss(
        torch.cat([student, impossible], 1), torch.cat([teacher, impossible], 1), temperature=4.0
    )
    assert loss.item() == pytest.approx(kd_loss(student, teacher, temperature=4.0).item())


@pytest.mark.parametrize("standardize", [False, True])
def test_the_method_computes_the_loss_with_its_settings(standardize: bool) -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    kd = build("kd", temperature=2.5, standardize=standardize)
    expected = kd_loss(student, teacher, temperature=2.5, standardize=standardize)
    assert torch.equal(term(kd, student, teacher), expected)
    assert_no_gradient_for_the_teacher(kd)


def test_networks_of_different_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 for the student resnet8 and 7 for the teacher"):
        KD(KD.Params(), pair_of_networks(10, 7))
    with pytest.raises(ValueError, match="num_classes is 1, but must be >= 2"):
        KD(KD.Params(), pair_of_networks(1))
