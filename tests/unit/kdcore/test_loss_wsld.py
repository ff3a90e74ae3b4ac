"""Weighted soft labels: the twin, the weights, sure networks."""

import math

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
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from kdcore.methods.wsld import WSLD, wsld_loss
from tests.twins.kd import naive_kd
from tests.twins.wsld import naive_wsld


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 16.0])
@pytest.mark.parametrize(("images", "classes"), [*SIZES, (3, 2)])
def test_the_loss_is_its_twin(images: int, classes: int, temperature: float) -> None:
    student, teacher = (
        random_logits(images, classes, seed=1),
        random_logits(images, classes, seed=2),
    )
    labels = labels_of(images, classes)
    loss = wsld_loss(student, teacher, labels, temperature=temperature)
    expected = naive_wsld(student, teacher, labels, temperature=temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


def test_the_gradient_is_that_of_the_twin_whose_weights_have_none() -> None:
    student = random_logits(3, 5, seed=1).requires_grad_()
    teacher, labels = random_logits(3, 5, seed=2), labels_of(3, 5)
    (ours,) = torch.autograd.grad(wsld_loss(student, teacher, labels, temperature=4.0), student)
    (naive,) = torch.autograd.grad(naive_wsld(student, teacher, labels, temperature=4.0), student)
    assert torch.allclose(ours, naive, rtol=1e-7, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences_where_the_weights_are_still() -> None:
    # A student whose cross-entropy is 60 times the teacher's has weight 1 to the last bit, here
    # and in its neighbourhood.
    student = random_logits(3, 5, seed=1).requires_grad_()
    labels = labels_of(3, 5)
    teacher = random_logits(3, 5, seed=2)
    teacher[torch.arange(3), labels] += 30
    assert gradcheck(lambda s: wsld_loss(s, teacher, labels, temperature=8.0), student)


def test_the_gradient_is_that_of_the_cross_entropy_of_soft_labels() -> None:
    """What the authors' code minimises differs by the teacher's entropy, a constant."""
    student = random_logits(4, 6, seed=1).requires_grad_()
    teacher, labels = random_logits(4, 6, seed=2), labels_of(4, 6)
    with torch.no_grad():
        ratio = cross_entropy(student, labels, reduction="none") / cross_entropy(
            teacher, labels, reduction="none"
        )
        weights = 1 - (-ratio).exp()
    soft = cross_entropy(student / 4, (teacher / 4).softmax(1), reduction="none")
    (published,) = torch.autograd.grad(16 * (weights * soft).mean(), student)
    (ours,) = torch.autograd.grad(wsld_loss(student, teacher, labels, temperature=4.0), student)
    assert torch.allclose(ours, published, rtol=1e-7, atol=1e-12)


def test_an_image_weighs_by_how_much_worse_the_student_is() -> None:
    student, teacher = random_logits(1, 6, seed=1), random_logits(1, 6, seed=2)
    label = torch.tensor([2])
    ratio = (cross_entropy(student, label) / cross_entropy(teacher, label)).item()
    weighted = wsld_loss(student, teacher, label, temperature=4.0).item()
    divergence = naive_kd(student, teacher, temperature=4.0).item()
    assert weighted / divergence == pytest.approx(1 - math.exp(-ratio))


def test_it_is_zero_at_equality_and_positive_elsewhere() -> None:
    student, labels = random_logits(5, 7, seed=1), labels_of(5, 7)
    shifted = student + random_logits(5, 1, seed=2)
    assert abs(wsld_loss(student, shifted, labels, temperature=4.0).item()) <= 1e-10
    other = random_logits(5, 7, seed=3)
    assert wsld_loss(student, other, labels, temperature=4.0).item() > 0.1


def test_sure_networks_have_the_weights_of_the_limit() -> None:
    labels, doubt = torch.tensor([0]), torch.tensor([[0.5, 0.0, 0.2]])
    right = torch.tensor([[1e4, 0.0, 0.0]])
    # A student that knows: weight 0, whatever the teacher says.
    assert wsld_loss(right, doubt, labels, temperature=4.0).item() == 0
    assert wsld_loss(right, right.roll(1, 1), labels, temperature=4.0).item() == 0
    # A teacher that knows, by a cross-entropy of exactly 0: weight 1.
    expected = naive_kd(doubt.double(), right.double() * 0.01, temperature=4.0).item()
    loss = wsld_loss(doubt, right * 0.01, labels, temperature=4.0).item()
    assert cross_entropy(right * 0.01, labels).item() == 0
    assert loss == pytest.approx(expected, rel=1e-5)


def test_hard_logits_give_a_finite_loss_and_gradient() -> None:
    assert_sound(lambda s, t: wsld_loss(s, t, labels_of(*s.shape), temperature=4.0))


def test_halves_are_computed_in_full() -> None:
    assert_computes_halves_in_full(
        lambda s, t: wsld_loss(s, t, labels_of(*s.shape), temperature=4.0)
    )


def test_the_method_computes_the_loss_with_its_settings() -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    wsld = build("wsld", temperature=2.0)
    expected = wsld_loss(student, teacher, labels_of(4, 10), temperature=2.0)
    assert torch.equal(term(wsld, student, teacher), expected)
    assert_no_gradient_for_the_teacher(wsld)


def test_networks_of_different_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 for the student resnet8 and 7 for the teacher"):
        WSLD(WSLD.Params(), pair_of_networks(10, 7))
