"""Transformed teacher matching: the twin, its zero, the weights of images."""

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

from kdcore.methods.wttm import WTTM, wttm_loss
from tests.twins.wttm import naive_wttm

both_forms = pytest.mark.parametrize("weighted", [True, False])


@both_forms
@pytest.mark.parametrize("power", [0.05, 0.2, 1.0, 2.0])
@pytest.mark.parametrize(("images", "classes"), [*SIZES, (3, 2)])
def test_the_loss_is_its_twin(images: int, classes: int, power: float, weighted: bool) -> None:
    student, teacher = (
        random_logits(images, classes, seed=1),
        random_logits(images, classes, seed=2),
    )
    loss = wttm_loss(student, teacher, power=power, weighted=weighted)
    expected = naive_wttm(student, teacher, power=power, weighted=weighted)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


@both_forms
def test_the_gradient_is_that_of_finite_differences_and_of_the_twin(weighted: bool) -> None:
    student, teacher = random_logits(3, 5, seed=1).requires_grad_(), random_logits(3, 5, seed=2)
    settings = {"power": 0.2, "weighted": weighted}
    assert gradcheck(lambda logits: wttm_loss(logits, teacher, **settings), student)
    (ours,) = torch.autograd.grad(wttm_loss(student, teacher, **settings), student)
    (naive,) = torch.autograd.grad(naive_wttm(student, teacher, **settings), student)
    assert torch.allclose(ours, naive, rtol=1e-7, atol=1e-12)


@both_forms
def test_it_is_zero_where_the_student_says_what_the_teacher_says_softened(weighted: bool) -> None:
    teacher = random_logits(5, 7, seed=1)
    softened = 0.2 * teacher + random_logits(5, 1, seed=2)
    assert abs(wttm_loss(softened, teacher, power=0.2, weighted=weighted).item()) <= 1e-10
    assert abs(wttm_loss(teacher, teacher, power=1.0, weighted=weighted).item()) <= 1e-10
    assert wttm_loss(teacher, teacher, power=0.2, weighted=weighted).item() > 0.1


def test_the_students_own_probabilities_are_not_softened() -> None:
    # The gradient of TTM is q - p^power / sum(p^power), with q at temperature 1.
    student, teacher = random_logits(1, 6, seed=1).requires_grad_(), random_logits(1, 6, seed=2)
    wttm_loss(student, teacher, power=0.25, weighted=False).backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, student.softmax(1) - (teacher / 4).softmax(1))


def test_an_unsure_teacher_counts_more_and_a_sure_one_once() -> None:
    student = random_logits(1, 100, seed=1)
    sure = torch.zeros(1, 100, dtype=torch.float64)
    sure[0, 3] = 1e4
    for teacher, expected in ((sure, 1.0), (torch.zeros_like(sure), 100**0.8)):
        once = wttm_loss(student, teacher, power=0.2, weighted=False)
        weighted = wttm_loss(student, teacher, power=0.2, weighted=True)
        assert (weighted / once).item() == pytest.approx(expected)


@both_forms
def test_hard_logits_give_a_finite_loss_and_gradient(weighted: bool) -> None:
    # Powers of a softmax that is 0 would be 0 times the logarithm of 0.
    assert_sound(lambda s, t: wttm_loss(s, t, power=0.2, weighted=weighted))


@both_forms
def test_halves_are_computed_in_full(weighted: bool) -> None:
    assert_computes_halves_in_full(lambda s, t: wttm_loss(s, t, power=0.2, weighted=weighted))


@both_forms
def test_the_method_computes_the_loss_with_its_settings(weighted: bool) -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    wttm = build("wttm", power=0.1, weighted=weighted)
    expected = wttm_loss(student, teacher, power=0.1, weighted=weighted)
    assert torch.equal(term(wttm, student, teacher), expected)
    assert_no_gradient_for_the_teacher(wttm)


def test_networks_of_different_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 for the student resnet8 and 7 for the teacher"):
        WTTM(WTTM.Params(), pair_of_networks(10, 7))
