"""Decoupled distillation: the twin, its tie to KD, saturated logits, the warm-up."""

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
from torch.nn.functional import kl_div, log_softmax, softmax

from kdcore.methods.dkd import DKD, dkd_loss
from tests.twins.dkd import naive_dkd
from tests.twins.kd import naive_kd

PUBLISHED = {"target_weight": 1.0, "nontarget_weight": 8.0, "temperature": 4.0}


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 8.0)], ids=str)
@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_the_loss_is_its_twin(
    images: int, classes: int, weights: tuple[float, float], temperature: float, standardize: bool
) -> None:
    # The guard against constant rows, 1e-8 in the variance, drowns in logits of 100.
    scale = 100.0 if standardize else 5.0
    student = random_logits(images, classes, seed=1, scale=scale)
    teacher = random_logits(images, classes, seed=2, scale=scale)
    labels = labels_of(images, classes)
    settings = {
        "target_weight": weights[0],
        "nontarget_weight": weights[1],
        "temperature": temperature,
        "standardize": standardize,
    }
    loss = dkd_loss(student, teacher, labels, **settings)
    expected = naive_dkd(student, teacher, labels, **settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_gradient_is_that_of_finite_differences_and_of_the_twin(standardize: bool) -> None:
    student = random_logits(3, 5, seed=1, scale=6).requires_grad_()
    teacher, labels = random_logits(3, 5, seed=2, scale=6), labels_of(3, 5)
    settings = {**PUBLISHED, "standardize": standardize}
    assert gradcheck(lambda logits: dkd_loss(logits, teacher, labels, **settings), student)
    (ours,) = torch.autograd.grad(dkd_loss(student, teacher, labels, **settings), student)
    (naive,) = torch.autograd.grad(naive_dkd(student, teacher, labels, **settings), student)
    assert torch.allclose(ours, naive, rtol=1e-7, atol=1e-12)


def test_with_the_teachers_doubt_as_weight_the_parts_are_kd() -> None:
    """KD = TCKD + (1 - p_y) NCKD, for one image."""
    student, teacher = random_logits(1, 6, seed=1), random_logits(1, 6, seed=2)
    labels = torch.tensor([4])
    doubt = 1 - (teacher / 3).softmax(1)[0, 4].item()
    loss = dkd_loss(
        student, teacher, labels, target_weight=1.0, nontarget_weight=doubt, temperature=3.0
    )
    assert loss.item() == pytest.approx(naive_kd(student, teacher, temperature=3.0).item())


def test_it_is_zero_at_equality_up_to_a_shift_and_positive_elsewhere() -> None:
    student, labels = random_logits(5, 7, seed=1), labels_of(5, 7)
    shifted = student + random_logits(5, 1, seed=2)
    assert abs(dkd_loss(student, shifted, labels, **PUBLISHED).item()) <= 1e-10
    scaled = dkd_loss(student, 3 * shifted, labels, **PUBLISHED, standardize=True)
    assert abs(scaled.item()) <= 1e-10
    assert dkd_loss(student, random_logits(5, 7, seed=3), labels, **PUBLISHED).item() > 0.1


@pytest.mark.parametrize("standardize", [False, True])
def test_hard_logits_give_a_finite_loss_and_gradient(standardize: bool) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        labels = labels_of(*student.shape)
        return dkd_loss(student, teacher, labels, **PUBLISHED, standardize=standardize)

    assert_sound(loss)


def test_a_sure_student_has_the_loss_that_the_logarithm_of_a_softmax_loses() -> None:
    student = torch.tensor([[500.0, 0.0, -20.0, 10.0]])
    teacher, labels = torch.tensor([[3.0, 1.0, 0.0, 2.0]]), torch.tensor([1])
    logarithm = torch.stack([softmax(student, 1)[0, 1], 1 - softmax(student, 1)[0, 1]]).log()
    p = softmax(teacher, 1)[0, 1]
    lost = kl_div(logarithm, torch.stack([p, 1 - p]), reduction="sum")
    assert lost.isinf()
    settings = {**PUBLISHED, "temperature": 1.0, "nontarget_weight": 0.0}
    loss = dkd_loss(student, teacher, labels, **settings)
    # log s_y = -500; the rest is log(1 - s_y) = 0 and the teacher's entropy.
    expected = (500 * p + p * p.log() + (1 - p) * (1 - p).log()).item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_no_large_logit_of_a_target_leaks_into_the_other_part() -> None:
    # The published code subtracts 1000 from the target's logit: too little at 1e4.
    student, teacher = random_logits(2, 5, seed=1), random_logits(2, 5, seed=2)
    labels = torch.tensor([0, 4])
    settings = {"target_weight": 0.0, "nontarget_weight": 1.0, "temperature": 1.0}
    expected = dkd_loss(student, teacher, labels, **settings)
    for logits in (student, teacher):
        logits[torch.arange(2), labels] = 1e4
    assert torch.equal(dkd_loss(student, teacher, labels, **settings), expected)
    others = [student[0, 1:], student[1, :4]], [teacher[0, 1:], teacher[1, :4]]
    by_hand = sum(
        kl_div(log_softmax(s, 0), log_softmax(t, 0), reduction="sum", log_target=True).item() / 2
        for s, t in zip(*others, strict=True)
    )
    assert expected.item() == pytest.approx(by_hand)


def test_halves_are_computed_in_full() -> None:
    assert_computes_halves_in_full(
        lambda s, t: dkd_loss(s, t, labels_of(*s.shape), **PUBLISHED, standardize=True)
    )


def test_two_classes_are_refused_for_their_second_part_is_always_zero() -> None:
    student, teacher = random_logits(4, 2, seed=1), random_logits(4, 2, seed=2)
    second = dkd_loss(student, teacher, labels_of(4, 2), **{**PUBLISHED, "target_weight": 0.0})
    assert second.item() == 0
    with pytest.raises(ValueError, match="num_classes is 2, but must be >= 3"):
        DKD(DKD.Params(), pair_of_networks(2))


def test_the_loss_rises_over_the_first_epochs() -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    full = dkd_loss(student, teacher, labels_of(4, 10), **PUBLISHED).item()
    shares = [
        term(build("dkd"), student, teacher, epoch=epoch, epochs=240).item() / full
        for epoch in (1, 10, 20, 21, 240)
    ]
    assert shares == pytest.approx([1 / 20, 1 / 2, 1, 1, 1])
    at_once = build("dkd", warmup_share=0.0)
    assert term(at_once, student, teacher, epoch=1, epochs=240).item() == pytest.approx(full)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_method_computes_the_loss_with_its_settings(standardize: bool) -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    settings = {
        "target_weight": 0.5,
        "nontarget_weight": 2.0,
        "temperature": 2.5,
        "standardize": standardize,
    }
    dkd = build("dkd", **settings)
    expected = dkd_loss(student, teacher, labels_of(4, 10), **settings)
    assert torch.equal(term(dkd, student, teacher), expected)
    assert_no_gradient_for_the_teacher(dkd)
