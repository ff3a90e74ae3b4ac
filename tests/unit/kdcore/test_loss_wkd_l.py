"""Wasserstein's distance of logits: the twins, exact transport, near classes, the decay."""

from dataclasses import replace
from typing import Any

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

from kdcore.backbones.catalogue import build_backbone
from kdcore.contract.taps import Mixed
from kdcore.data.image_data import ImageData
from kdcore.distillation.distill import network_pair
from kdcore.methods.wkd_l import WKDL, transport_cost, transport_distance, wkd_l_loss
from tests.twins.wkd_l import naive_transport_cost, naive_wkd_l

PUBLISHED: dict[str, Any] = {
    "transport_weight": 600.0,
    "temperature": 8.0,
    "regularization": 0.05,
    "iterations": 10,
}


def classifier(classes: int, *, width: int = 6, seed: int = 3) -> Tensor:
    return random_logits(classes, width, seed=seed)


def cost_of(classes: int) -> Tensor:
    return transport_cost(classifier(classes), sharpness=1.0)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_cost_is_its_twin_with_zeros_on_the_diagonal(sharpness: float) -> None:
    rows = classifier(7)
    cost = transport_cost(rows, sharpness=sharpness)
    assert torch.allclose(cost, naive_transport_cost(rows, sharpness=sharpness), atol=1e-12)
    assert not cost.diagonal().any()
    assert cost.min() >= 0
    assert cost.max() < 1
    assert torch.allclose(cost, cost.T, atol=1e-15)


def test_a_dead_row_is_as_far_from_every_class_as_an_unrelated_one() -> None:
    rows = torch.eye(4)
    rows[2] = 0.0
    unrelated = transport_cost(torch.eye(4), sharpness=1.0)
    assert torch.equal(transport_cost(rows, sharpness=1.0), unrelated)


@pytest.mark.parametrize("settings", [(0.05, 10), (0.02, 1), (0.5, 30)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 8.0])
@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_the_loss_is_its_twin(
    images: int, classes: int, temperature: float, settings: tuple[float, int]
) -> None:
    student = random_logits(images, classes, seed=1)
    teacher = random_logits(images, classes, seed=2)
    labels, cost = labels_of(images, classes), cost_of(classes)
    given: dict[str, Any] = {
        "transport_weight": 30.0,
        "temperature": temperature,
        "regularization": settings[0],
        "iterations": settings[1],
    }
    loss = wkd_l_loss(student, teacher, labels, cost, **given)
    expected = naive_wkd_l(student, teacher, labels, cost, **given)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_gradient_is_that_of_finite_differences_and_of_the_twin() -> None:
    student = random_logits(3, 5, seed=1).requires_grad_()
    teacher, labels, cost = random_logits(3, 5, seed=2), labels_of(3, 5), cost_of(5)
    assert gradcheck(lambda logits: wkd_l_loss(logits, teacher, labels, cost, **PUBLISHED), student)
    (ours,) = torch.autograd.grad(wkd_l_loss(student, teacher, labels, cost, **PUBLISHED), student)
    (naive,) = torch.autograd.grad(
        naive_wkd_l(student, teacher, labels, cost, **PUBLISHED), student
    )
    assert torch.allclose(ours, naive, rtol=1e-7, atol=1e-12)


def test_with_little_entropy_it_is_the_distance_of_a_transport_that_is_known() -> None:
    # Classes on a line, at 0, 0.3 and 0.9: the distance is the area between cumulated masses.
    places = torch.tensor([0.0, 0.3, 0.9, 0.5], dtype=torch.float64)
    cost = (places[:, None] - places[None, :]).abs()
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.1, 0.3, 0.6, 0.0]], dtype=torch.float64)
    distance = transport_distance(
        p, q, torch.tensor([3]), cost, regularization=0.02, iterations=500
    )
    assert distance.item() == pytest.approx(0.4 * 0.3 + 0.4 * 0.6, rel=1e-3)


def test_a_mistake_for_a_near_class_costs_less() -> None:
    near_and_far = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]])
    cost = transport_cost(near_and_far, sharpness=1.0)
    teacher, label = torch.tensor([[0.0, 5.0, 0.0, 0.0]]), torch.tensor([0])
    near, far = torch.tensor([[0.0, 0.0, 5.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 5.0]])
    settings = {**PUBLISHED, "temperature": 1.0}
    costs = [wkd_l_loss(student, teacher, label, cost, **settings) for student in (near, far)]
    assert costs[0] < 0.2 * costs[1]


def test_without_transport_it_is_cross_entropy_weighted_by_the_teachers_probability() -> None:
    student, teacher = random_logits(5, 7, seed=1), random_logits(5, 7, seed=2)
    labels = labels_of(5, 7)
    loss = wkd_l_loss(student, teacher, labels, cost_of(7), **{**PUBLISHED, "transport_weight": 0})
    weights = teacher.softmax(1).gather(1, labels[:, None]).squeeze(1)
    expected = (weights * cross_entropy(student, labels, reduction="none")).mean()
    assert loss.item() == pytest.approx(expected.item())


def test_the_targets_logit_has_no_part_in_the_transport() -> None:
    student, teacher = random_logits(4, 6, seed=1), random_logits(4, 6, seed=2)
    labels = labels_of(4, 6)

    def moved(student: Tensor, teacher: Tensor) -> Tensor:
        both = wkd_l_loss(student, teacher, labels, cost_of(6), **PUBLISHED)
        settings = {**PUBLISHED, "transport_weight": 0.0}
        return both - wkd_l_loss(student, teacher, labels, cost_of(6), **settings)

    before = moved(student, teacher).item()
    for logits in (student, teacher):
        logits[torch.arange(4), labels] += 20.0
    assert moved(student, teacher).item() == pytest.approx(before)


@pytest.mark.parametrize("temperature", [1.0, 8.0])
def test_hard_logits_give_a_finite_loss_and_gradient(temperature: float) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        settings = {**PUBLISHED, "temperature": temperature, "regularization": 0.02}
        cost = cost_of(student.shape[1]).float()
        return wkd_l_loss(student, teacher, labels_of(*student.shape), cost, **settings)

    assert_sound(loss)


def test_halves_are_computed_in_full() -> None:
    cost = cost_of(10).float()
    assert_computes_halves_in_full(
        lambda s, t: wkd_l_loss(s, t, labels_of(*s.shape), cost, **PUBLISHED)
    )


def test_a_mixed_image_has_the_mean_over_a_target_that_is_drawn_by_the_shares() -> None:
    student, teacher = random_logits(1, 6, seed=1), random_logits(1, 6, seed=2)
    first, second, cost = torch.tensor([2]), torch.tensor([5]), cost_of(6)
    mixed = Mixed(second, torch.tensor([0.7], dtype=torch.float64))
    loss = wkd_l_loss(student, teacher, first, cost, **PUBLISHED, mixed=mixed).item()
    apart = [
        wkd_l_loss(student, teacher, each, cost, **PUBLISHED).item() for each in (first, second)
    ]
    assert loss == pytest.approx(0.7 * apart[0] + 0.3 * apart[1])


def test_classes_are_as_near_as_the_rows_of_the_teachers_classifier() -> None:
    where = replace(pair_of_networks(), teacher_classifier=classifier(10).float())
    known = WKDL(WKDL.Params(), where)
    assert torch.equal(known.cost, transport_cost(classifier(10).float(), sharpness=1.0))
    # Of a teacher that is not there yet, all are equally far.
    unknown = WKDL(WKDL.Params(sharpness=2.0), pair_of_networks())
    assert torch.equal(unknown.cost, transport_cost(torch.eye(10), sharpness=2.0))
    assert [*unknown.state_dict()] == ["cost"]


def test_a_trial_gives_the_method_the_classifier_of_its_teacher(digits: ImageData) -> None:
    teacher = build_backbone("resnet14", num_classes=digits.num_classes, in_channels=1, seed=0)
    rows = network_pair("resnet8", "resnet14", digits, teacher).teacher_classifier
    assert rows is not None
    assert torch.equal(rows, teacher.fc.weight)
    assert not rows.requires_grad
    assert network_pair("resnet8", "resnet14", digits).teacher_classifier is None


def test_a_teacher_without_a_classifier_of_its_own_and_two_classes_are_refused() -> None:
    where = pair_of_networks()
    several = replace(where, teacher=replace(where.teacher, logits_only=True))
    with pytest.raises(ValueError, match="classifier, but resnet14 has logits alone; use other"):
        WKDL(WKDL.Params(), several)
    with pytest.raises(ValueError, match="num_classes is 2, but must be >= 3"):
        WKDL(WKDL.Params(), pair_of_networks(2))


def test_the_transports_weight_falls_over_the_last_epochs() -> None:
    student, teacher = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)
    method = build("wkd_l").double()

    def value(epoch: int) -> float:
        return term(method, student, teacher, epoch=epoch, epochs=240).item()

    end, whole = value(240), value(1)
    shares = [(value(epoch) - end) / (whole - end) for epoch in (150, 195, 240)]
    assert shares == pytest.approx([1, 0.5, 0])


def test_the_method_computes_the_loss_with_its_settings() -> None:
    student, teacher = (random_logits(4, 10, seed=seed).float() for seed in (1, 2))
    settings = {**PUBLISHED, "transport_weight": 50.0, "temperature": 3.0, "iterations": 5}
    where = replace(pair_of_networks(), teacher_classifier=classifier(10).float())
    method = WKDL(WKDL.Params(**settings, decay_start=1.0, sharpness=2.0), where)
    cost = transport_cost(classifier(10).float(), sharpness=2.0)
    expected = wkd_l_loss(student, teacher, labels_of(4, 10), cost, **settings)
    assert torch.equal(term(method, student, teacher), expected)
    assert_no_gradient_for_the_teacher(method)
