"""Curriculum temperature: the twin, the opposed gradient, its ramp and bounds, a short trial."""

import math
from pathlib import Path

import pytest
import torch
from logit_methods import (
    SIZES,
    ShortTrial,
    assert_computes_halves_in_full,
    assert_no_gradient_for_the_teacher,
    assert_sound,
    build,
    pair_of_networks,
    random_logits,
    term,
)
from torch import Tensor
from torch.autograd import gradcheck

from kdcore import DataConfig, TeacherConfig
from kdcore.methods.ctkd import CTKD, ctkd_loss, reversed_gradient
from tests.twins.ctkd import naive_ctkd

STUDENT, TEACHER = random_logits(4, 10, seed=1), random_logits(4, 10, seed=2)


def _temperature(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _ctkd(**params: object) -> CTKD:
    method = build("ctkd", **params)
    assert isinstance(method, CTKD)
    return method.double()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 21.0])
@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_the_loss_is_its_twin(
    images: int, classes: int, temperature: float, standardize: bool
) -> None:
    # The guard against constant rows, 1e-8 in the variance, drowns in logits of 100.
    scale = 100.0 if standardize else 5.0
    student = random_logits(images, classes, seed=1, scale=scale)
    teacher = random_logits(images, classes, seed=2, scale=scale)
    arguments = student, teacher, _temperature(temperature)
    loss = ctkd_loss(*arguments, standardize=standardize)
    expected = naive_ctkd(*arguments, standardize=standardize)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_gradients_are_those_of_finite_differences_and_of_the_twin(standardize: bool) -> None:
    student = random_logits(3, 5, seed=1, scale=10).requires_grad_()
    teacher = random_logits(3, 5, seed=2, scale=10)
    temperature = _temperature(3.0).requires_grad_()
    assert gradcheck(
        lambda s, tau: ctkd_loss(s, teacher, tau, standardize=standardize), (student, temperature)
    )
    ours, naive = (
        torch.autograd.grad(
            loss(student, teacher, temperature, standardize=standardize), (student, temperature)
        )
        for loss in (ctkd_loss, naive_ctkd)
    )
    for a, b in zip(ours, naive, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-12)


def test_it_is_zero_at_equality_up_to_a_shift_and_positive_elsewhere() -> None:
    shifted = STUDENT + random_logits(4, 1, seed=3)
    assert abs(ctkd_loss(STUDENT, shifted, _temperature(4.0)).item()) <= 1e-10
    scaled = ctkd_loss(STUDENT, 3 * shifted, _temperature(4.0), standardize=True)
    assert abs(scaled.item()) <= 1e-10
    assert ctkd_loss(STUDENT, TEACHER, _temperature(4.0)).item() > 0.1


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_a_reversed_gradient_leaves_the_value_to_the_bit(factor: float) -> None:
    value = torch.tensor([1.1, -3.7, 1e-9, 0.0], requires_grad=True)
    reversed_ = reversed_gradient(value, factor)
    reversed_.square().sum().backward()
    assert torch.equal(reversed_, value)
    assert value.grad is not None
    assert torch.allclose(value.grad, -factor * 2 * value.detach())


def test_a_step_of_descent_makes_the_students_task_harder() -> None:
    ctkd = _ctkd()
    optimizer = torch.optim.SGD(ctkd.parameters(), lr=0.1)
    before = term(ctkd, STUDENT, TEACHER)
    before.backward()
    optimizer.step()
    assert term(ctkd, STUDENT, TEACHER).item() > before.item()


def test_the_temperature_opposes_the_student_with_the_cosine_of_the_epoch() -> None:
    ctkd = _ctkd()
    direct = torch.autograd.grad(
        ctkd_loss(STUDENT, TEACHER, ctkd.temperature), ctkd.temperature_logit
    )[0]
    for epoch in (1, 5, 10, 11, 240):
        loss = term(ctkd, STUDENT, TEACHER, epoch=epoch, epochs=240)
        (opposed,) = torch.autograd.grad(loss, ctkd.temperature_logit)
        expected = 0.5 * (1 - math.cos(math.pi * min(epoch / 10, 1)))
        assert (-opposed / direct).item() == pytest.approx(expected)
        # The student's own gradient knows nothing of the ramp.
        assert loss.item() == ctkd_loss(STUDENT, TEACHER, ctkd.temperature).item()


@pytest.mark.parametrize(
    ("logit", "temperature"), [(-1e4, 1.0), (0.0, 11.0), (1.0, 15.621171572600098), (1e4, 21.0)]
)
def test_the_temperature_cannot_leave_its_range(logit: float, temperature: float) -> None:
    # Without bounds, and beside other terms, the published form ended in NaN.
    ctkd = _ctkd()
    with torch.no_grad():
        ctkd.temperature_logit.fill_(logit)
    assert ctkd.temperature.item() == pytest.approx(temperature)
    assert term(ctkd, STUDENT, TEACHER).isfinite()
    narrow = _ctkd(lowest_temperature=2.0, temperature_range=3.0)
    assert 2 <= narrow.temperature.item() <= 5


@pytest.mark.parametrize("standardize", [False, True])
def test_hard_logits_give_a_finite_loss_and_gradient(standardize: bool) -> None:
    temperature = torch.tensor(15.6, requires_grad=True)
    assert_sound(lambda s, t: ctkd_loss(s, t, temperature, standardize=standardize))
    assert temperature.grad is not None
    assert temperature.grad.isfinite()


def test_halves_are_computed_in_full() -> None:
    temperature = torch.tensor(15.6)
    assert_computes_halves_in_full(lambda s, t: ctkd_loss(s, t, temperature, standardize=True))


@pytest.mark.parametrize("standardize", [False, True])
def test_the_method_computes_the_loss_with_its_settings(standardize: bool) -> None:
    ctkd = _ctkd(standardize=standardize)
    expected = ctkd_loss(STUDENT, TEACHER, ctkd.temperature, standardize=standardize)
    assert torch.equal(term(ctkd, STUDENT, TEACHER), expected)
    assert_no_gradient_for_the_teacher(build("ctkd", standardize=standardize))


def test_the_temperature_is_the_only_helper_and_begins_as_published() -> None:
    ctkd = _ctkd()
    assert [name for name, _ in ctkd.named_parameters()] == ["temperature_logit"]
    assert list(ctkd.state_dict()) == ["temperature_logit"]
    assert ctkd.temperature.item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))


def test_networks_of_different_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 for the student resnet8 and 7 for the teacher"):
        CTKD(CTKD.Params(), pair_of_networks(10, 7))


def test_it_learns_and_so_does_its_temperature(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    trial = ShortTrial("ctkd", digits_config, teacher_config, workspace)
    trial.assert_learns(tmp_path)
    learned = trial.helpers(tmp_path)["temperature_logit"]
    assert learned.isfinite()
    assert abs(learned.item() - 1.0) > 1e-4


def test_weight_decay_spares_the_temperature(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    # Of weight 0, the term moves nothing: only decay could.
    trial = ShortTrial("ctkd", digits_config, teacher_config, workspace, weight=0.0)
    trial.reports(tmp_path)
    assert trial.helpers(tmp_path)["temperature_logit"].item() == 1.0
