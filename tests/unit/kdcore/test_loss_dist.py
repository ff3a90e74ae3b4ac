"""DIST: the twin, what correlations do not see, rows and columns without any."""

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

from kdcore.methods.dist import DIST, dist_loss
from tests.twins.dist import naive_dist

PUBLISHED = {"interclass_weight": 1.0, "intraclass_weight": 1.0, "temperature": 4.0}
INTERCLASS = {"interclass_weight": 1.0, "intraclass_weight": 0.0, "temperature": 1.0}
INTRACLASS = {"interclass_weight": 0.0, "intraclass_weight": 1.0, "temperature": 1.0}


@pytest.mark.parametrize("temperature", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)], ids=str)
@pytest.mark.parametrize(("images", "classes"), [*SIZES[1:], (3, 2)])
def test_the_loss_is_its_twin(
    images: int, classes: int, weights: tuple[float, float], temperature: float
) -> None:
    student, teacher = (
        random_logits(images, classes, seed=1),
        random_logits(images, classes, seed=2),
    )
    settings = {
        "interclass_weight": weights[0],
        "intraclass_weight": weights[1],
        "temperature": temperature,
    }
    loss = dist_loss(student, teacher, **settings)
    expected = naive_dist(student, teacher, **settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("settings", [PUBLISHED, INTERCLASS, INTRACLASS], ids=str)
def test_the_gradient_is_that_of_finite_differences_and_of_the_twin(
    settings: dict[str, float],
) -> None:
    student, teacher = random_logits(4, 5, seed=1).requires_grad_(), random_logits(4, 5, seed=2)
    assert gradcheck(lambda logits: dist_loss(logits, teacher, **settings), student)
    (ours,) = torch.autograd.grad(dist_loss(student, teacher, **settings), student)
    (naive,) = torch.autograd.grad(naive_dist(student, teacher, **settings), student)
    assert torch.allclose(ours, naive, rtol=1e-7, atol=1e-12)


def test_it_is_zero_at_equality_up_to_a_shift_and_positive_elsewhere() -> None:
    student = random_logits(5, 7, seed=1)
    shifted = student + random_logits(5, 1, seed=2)
    assert abs(dist_loss(student, shifted, **PUBLISHED).item()) <= 1e-10
    assert dist_loss(student, random_logits(5, 7, seed=3), **PUBLISHED).item() > 0.1
    # In single precision too: no 1 - (1 - rounding) is left over.
    assert dist_loss(student.float(), student.float().clone(), **PUBLISHED).item() == 0


def test_probabilities_need_not_be_equal_to_correlate() -> None:
    """A student that is half as decided about every image has the teacher's relations."""
    teacher = random_logits(4, 6, seed=1)
    probabilities = 0.5 * teacher.softmax(1) + 0.5 / 6
    assert abs(dist_loss(probabilities.log(), teacher, **INTERCLASS).item()) <= 1e-10
    assert abs(dist_loss(probabilities.log(), teacher, **INTRACLASS).item()) <= 1e-10


def test_the_opposite_relation_is_at_distance_2() -> None:
    teacher = torch.tensor([[0.1, 0.3, 0.6], [0.5, 0.3, 0.2]], dtype=torch.float64)
    student = 2 / 3 - teacher
    opposite = dist_loss(student.log(), teacher.log(), **INTERCLASS)
    assert opposite.item() == pytest.approx(2.0)


def test_hard_logits_give_a_finite_loss_and_gradient() -> None:
    assert_sound(lambda s, t: dist_loss(s, t, **PUBLISHED))


def test_one_image_has_no_relation_to_others_and_keeps_its_classes() -> None:
    student, teacher = random_logits(1, 5, seed=1).requires_grad_(), random_logits(1, 5, seed=2)
    between_images = dist_loss(student, teacher, **INTRACLASS)
    (gradient,) = torch.autograd.grad(between_images, student)
    assert between_images.item() == 0
    assert not gradient.any()
    both = dist_loss(student, teacher, **{**PUBLISHED, "temperature": 1.0})
    assert torch.equal(both, dist_loss(student, teacher, **INTERCLASS))


def test_equal_probabilities_correlate_with_nothing_and_agree_with_each_other() -> None:
    flat, other = torch.zeros(3, 5), random_logits(3, 5, seed=1).float()
    assert dist_loss(flat, other, **INTERCLASS).item() == pytest.approx(0.5)
    assert dist_loss(other, flat, **INTERCLASS).item() == pytest.approx(0.5)
    assert dist_loss(flat, flat + 3, **INTERCLASS).item() == 0


@pytest.mark.parametrize("level", [0.0, 50.0, -700.0])
def test_a_class_that_is_never_likely_has_a_relation_too(level: float) -> None:
    # exp(-700) is far below what float32 can hold, let alone its square.
    student, teacher = (random_logits(6, 5, seed=seed) for seed in (1, 2))
    for logits in (student, teacher):
        logits[:, 3] += level
    expected = dist_loss(student, teacher, **INTRACLASS).item()
    single = dist_loss(student.float(), teacher.float(), **INTRACLASS).item()
    assert single == pytest.approx(expected, rel=1e-3)


def test_halves_are_computed_in_full() -> None:
    assert_computes_halves_in_full(lambda s, t: dist_loss(s, t, **PUBLISHED))


def test_the_method_computes_the_loss_with_its_settings() -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    dist = build("dist", interclass_weight=0.5, intraclass_ratio=3.0, temperature=2.0)
    expected = dist_loss(
        student, teacher, interclass_weight=0.5, intraclass_weight=1.5, temperature=2.0
    )
    assert torch.equal(term(dist, student, teacher), expected)
    assert_no_gradient_for_the_teacher(dist)


def test_networks_of_different_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 for the student resnet8 and 7 for the teacher"):
        DIST(DIST.Params(), pair_of_networks(10, 7))
