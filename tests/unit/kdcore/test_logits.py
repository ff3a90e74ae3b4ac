"""Logits made ready for a comparison, taken apart, compared."""

import math

import pytest
import torch
from logit_methods import labels_of, pair_of_networks, random_logits
from torch import Tensor
from torch.autograd import gradcheck

from kdcore.operations.logits import (
    binary_divergence,
    check_classes,
    log_odds,
    softened_divergence,
    standardized,
    target_and_others,
)

# Standardisation


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (4, 3), (5, 100)])
def test_standardised_rows_have_mean_0_and_deviation_1(images: int, classes: int) -> None:
    logits = 5 + random_logits(images, classes, seed=1)
    result = standardized(logits)
    assert result.mean(1).tolist() == pytest.approx([0.0] * images, abs=1e-12)
    # Unbiased, as in the published code: the sum of squares is K - 1. The guard against
    # constant rows takes (1e-4)^2 of the variance.
    assert result.std(1).tolist() == pytest.approx([1.0] * images, rel=1e-6)


def test_standardisation_sees_neither_shift_nor_scale_of_a_row_but_its_sign() -> None:
    logits = random_logits(4, 6, seed=1)
    scales = torch.tensor([[0.5], [2.0], [10.0], [1e4]], dtype=torch.float64)
    moved = standardized(scales * logits + random_logits(4, 1, seed=2))
    assert torch.allclose(moved, standardized(logits), rtol=1e-6)
    assert torch.allclose(standardized(-logits), -standardized(logits))


def test_of_two_classes_only_the_order_remains() -> None:
    result = standardized(torch.tensor([[3.0, 1.0], [-40.0, 90.0]], dtype=torch.float64))
    half = math.sqrt(0.5)
    assert result.flatten().tolist() == pytest.approx([half, -half, -half, half], rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
def test_a_constant_row_becomes_zero_with_a_finite_gradient(value: float) -> None:
    logits = torch.full((2, 10), value).requires_grad_()
    result = standardized(logits)
    (result * torch.arange(10.0)).sum().backward()
    assert not result.any()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    # The published guard of 1e-7 would let gradients of 1e7 through.
    assert logits.grad.abs().max() <= 1e5


def test_the_gradient_of_standardisation_is_that_of_finite_differences() -> None:
    assert gradcheck(standardized, random_logits(3, 5, seed=1).requires_grad_())


# Target and others


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (4, 3), (7, 5)])
def test_a_row_is_taken_apart_in_the_order_of_its_classes(images: int, classes: int) -> None:
    logits, labels = random_logits(images, classes, seed=1), labels_of(images, classes)
    target, others = target_and_others(logits, labels)
    for image, label in enumerate(labels.tolist()):
        row = logits[image].tolist()
        assert target[image].item() == row.pop(label)
        assert others[image].tolist() == row


def test_each_logit_has_the_gradient_of_the_part_it_went_to() -> None:
    logits = random_logits(3, 4, seed=1).requires_grad_()
    labels = torch.tensor([0, 3, 2])
    target, others = target_and_others(logits, labels)
    (2 * target.sum() + 5 * others.sum()).backward()
    expected = torch.full((3, 4), 5.0, dtype=torch.float64)
    expected[torch.arange(3), labels] = 2
    assert logits.grad is not None
    assert torch.equal(logits.grad, expected)


# The divergence


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_given_image_by_image(temperature: float) -> None:
    student, teacher = random_logits(5, 4, seed=1), random_logits(5, 4, seed=2)
    together = softened_divergence(student, teacher, temperature)
    for image in range(5):
        p, q = ((logits[image] / temperature).softmax(0) for logits in (teacher, student))
        expected = temperature**2 * (p * (p / q).log()).sum().item()
        assert together[image].item() == pytest.approx(expected, rel=1e-8)


def test_the_divergence_has_the_right_gradient_for_both_networks_and_the_temperature() -> None:
    temperature = torch.tensor(2.5, dtype=torch.float64).requires_grad_()
    logits = [random_logits(3, 4, seed=seed).requires_grad_() for seed in (1, 2)]
    assert gradcheck(softened_divergence, (*logits, temperature))


def test_a_class_that_both_networks_rule_out_counts_for_nothing() -> None:
    student, teacher = random_logits(3, 4, seed=1), random_logits(3, 4, seed=2)
    impossible = torch.full((3, 1), -math.inf, dtype=torch.float64)

    def masked(logits: Tensor) -> Tensor:
        return torch.cat([logits, impossible], dim=1).requires_grad_()

    student_masked = masked(student)
    divergence = softened_divergence(student_masked, masked(teacher), 4.0)
    assert torch.allclose(divergence, softened_divergence(student, teacher, 4.0))
    divergence.sum().backward()
    assert student_masked.grad is not None
    assert student_masked.grad.isfinite().all()


# Classes


def test_networks_of_different_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 for the student resnet8 and 7 for the teacher resn"):
        check_classes(pair_of_networks(10, 7))


@pytest.mark.parametrize("at_least", [2, 3])
def test_too_few_classes_are_refused(at_least: int) -> None:
    check_classes(pair_of_networks(at_least), at_least=at_least)
    with pytest.raises(ValueError, match=rf"is {at_least - 1}, but must be >= {at_least}"):
        check_classes(pair_of_networks(at_least - 1), at_least=at_least)


def test_log_odds_and_the_divergence_of_two_outcomes_are_those_of_probabilities() -> None:
    labels = labels_of(5, 6)
    odds = []
    for seed in (1, 2):
        logits = random_logits(5, 6, seed=seed)
        p = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
        odds.append(log_odds(logits, labels))
        assert torch.allclose(odds[-1], (p / (1 - p)).log(), rtol=1e-10)
    q, p = (each.sigmoid() for each in odds)
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.allclose(binary_divergence(*odds), expected, rtol=1e-10)
    far = torch.tensor([1e4, -1e4])
    assert binary_divergence(far, -far).tolist() == [1e4, 1e4]
