"""Class attention transfer: the twin, its tie to logits, dead maps, refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_methods import batch_of, build, pair_of_networks, random, taps_of
from logit_methods import ShortTrial
from torch.autograd import gradcheck
from torch.nn.functional import mse_loss

from kdcore import DataConfig, TeacherConfig
from kdcore.methods.catkd import CATKD, catkd_loss
from tests.twins.catkd import naive_catkd

SIZES = [((2, 5, 4, 4), (2, 5, 4, 4)), ((3, 4, 8, 6), (3, 4, 4, 3)), ((1, 3, 7, 2), (1, 3, 3, 5))]

either_way = pytest.mark.parametrize("normalize", [False, True])


@either_way
@pytest.mark.parametrize("resolution", [1, 2, 4])
@pytest.mark.parametrize(("student_size", "teacher_size"), SIZES)
def test_the_loss_and_its_gradient_are_the_twins(
    student_size: tuple[int, ...], teacher_size: tuple[int, ...], resolution: int, normalize: bool
) -> None:
    student, teacher = random(*student_size, seed=1).requires_grad_(), random(*teacher_size, seed=2)
    settings: dict[str, Any] = {"resolution": resolution, "normalize": normalize}
    loss, naive = (each(student, teacher, **settings) for each in (catkd_loss, naive_catkd))
    assert loss.item() == pytest.approx(naive.item(), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


@either_way
def test_the_gradient_is_that_of_finite_differences(normalize: bool) -> None:
    student, teacher = random(2, 3, 4, 4, seed=1).requires_grad_(), random(2, 3, 4, 4, seed=2)
    assert gradcheck(
        lambda maps: catkd_loss(maps, teacher, resolution=2, normalize=normalize), student
    )


def test_of_one_region_it_compares_logits() -> None:
    student, teacher = random(4, 6, 5, 7, seed=1), random(4, 6, 5, 7, seed=2)
    loss = catkd_loss(student, teacher, resolution=1, normalize=False)
    assert loss.item() == pytest.approx(mse_loss(student.mean((2, 3)), teacher.mean((2, 3))).item())


def test_normalised_it_sees_where_a_class_is_and_not_how_much() -> None:
    teacher = random(3, 5, 4, 4, seed=1)
    louder = random(3, 5, 1, 1, seed=2).abs() * teacher
    settings: dict[str, Any] = {"resolution": 4}
    assert abs(catkd_loss(louder, teacher, normalize=True, **settings).item()) < 1e-15
    assert catkd_loss(louder, teacher, normalize=False, **settings).item() > 0.05
    assert catkd_loss(teacher.flip(3), teacher, normalize=True, **settings).item() > 0.05


@either_way
def test_dead_maps_have_a_finite_gradient(normalize: bool) -> None:
    student = random(2, 3, 4, 4, seed=1).float()
    student[0, 1] = 0.0
    student.requires_grad_()
    teacher = random(2, 3, 4, 4, seed=2).float()
    teacher[1, 2] = 0.0
    loss = catkd_loss(student, teacher, resolution=2, normalize=normalize)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_full(dtype: torch.dtype) -> None:
    # 300^2 is beyond float16.
    strong = torch.full((1, 2, 2, 2), 300.0).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = catkd_loss(strong, -strong, resolution=2, normalize=False)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(600.0**2)


@either_way
def test_the_method_computes_the_loss_with_its_settings(normalize: bool) -> None:
    where = pair_of_networks("resnet8", "resnet50", image_size=(24, 40))
    student, teacher = taps_of(where, 4)
    assert student.class_maps is not None
    assert teacher.class_maps is not None
    settings: dict[str, Any] = {"resolution": 4, "normalize": normalize}
    loss = build("catkd", where, **settings)(student, teacher, batch_of(4))
    expected = naive_catkd(student.class_maps, teacher.class_maps, **settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


def test_networks_without_class_maps_or_of_other_classes_are_refused() -> None:
    where = pair_of_networks()
    without = replace(where, student=replace(where.student, class_map=None))
    with pytest.raises(ValueError, match="class maps, but the classifier of the student resnet8"):
        CATKD(CATKD.Params(), without)
    fewer = replace(where, teacher=replace(where.teacher, num_classes=5))
    with pytest.raises(ValueError, match="num_classes is 10 for the student resnet8 and 5 for"):
        CATKD(CATKD.Params(), fewer)


def test_a_short_trial_learns(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    ShortTrial("catkd", digits_config, teacher_config, workspace).assert_learns(tmp_path)
