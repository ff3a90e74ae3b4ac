"""Scale-decoupled distillation: the twin, its tie to kd, which regions count more, refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_methods import batch_of, build, pair_of_networks, random, taps_of
from logit_methods import ShortTrial
from torch.autograd import gradcheck

from kdcore import DataConfig, TeacherConfig
from kdcore.backbones.probe import probe_shapes
from kdcore.methods.kd import kd_loss
from kdcore.methods.sdd import SDD, sdd_loss
from tests.twins.sdd import naive_sdd

PUBLISHED: dict[str, Any] = {"finest": 4, "complementary_weight": 2.0, "temperature": 4.0}
SIZES = [((2, 5, 4, 4), (2, 5, 4, 4)), ((3, 4, 8, 6), (3, 4, 4, 3)), ((1, 3, 7, 2), (1, 3, 3, 5))]


@pytest.mark.parametrize("finest", [1, 2, 4])
@pytest.mark.parametrize(("student_size", "teacher_size"), SIZES)
def test_the_loss_and_its_gradient_are_the_twins(
    student_size: tuple[int, ...], teacher_size: tuple[int, ...], finest: int
) -> None:
    student = (3 * random(*student_size, seed=1)).requires_grad_()
    teacher = 3 * random(*teacher_size, seed=2)
    labels = teacher.mean((2, 3)).argmax(1)
    labels[:1] = (labels[:1] + 1) % teacher_size[1]  # it is wrong about the first image
    settings: dict[str, Any] = {**PUBLISHED, "finest": finest, "complementary_weight": 3.0}
    loss = sdd_loss(student, teacher, labels, **settings)
    naive = naive_sdd(student, teacher, labels, **settings)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    student, teacher = random(2, 3, 4, 4, seed=1).requires_grad_(), random(2, 3, 4, 4, seed=2)
    labels = torch.tensor([0, 2])
    assert gradcheck(lambda maps: sdd_loss(maps, teacher, labels, **PUBLISHED), student)


def test_of_the_whole_image_alone_it_is_kd() -> None:
    student, teacher = (3 * random(4, 6, 5, 7, seed=seed) for seed in (1, 2))
    loss = sdd_loss(student, teacher, torch.arange(4), **{**PUBLISHED, "finest": 1})
    expected = kd_loss(student.mean((2, 3)), teacher.mean((2, 3)), temperature=4.0)
    assert loss.item() == pytest.approx(expected.item())


def test_a_region_counts_more_where_the_teacher_is_right_of_it_or_of_the_image_alone() -> None:
    # Two regions a side; class 1 has the image, and the lower right region has class 0.
    teacher = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    teacher[0, 1] = 3.0
    teacher[0, 1, 1, 1] = -3.0
    student = random(1, 2, 2, 2, seed=1)
    settings = {**PUBLISHED, "finest": 2}

    def parts(label: int) -> list[float]:
        labels = torch.tensor([label])
        return [
            sdd_loss(student, teacher, labels, **{**settings, "complementary_weight": each}).item()
            for each in (0.0, 1.0, 2.0)
        ]

    lower_right = kd_loss(student[..., 1, 1], teacher[..., 1, 1], temperature=4.0).item() / 5
    for label in (0, 1):  # the teacher is wrong about the image, and right
        without, plain, twice = parts(label)
        assert plain - without == pytest.approx(lower_right)
        assert twice - plain == pytest.approx(lower_right)


def test_it_is_zero_where_positions_differ_by_a_shift_of_all_classes() -> None:
    teacher = random(3, 5, 4, 4, seed=1)
    shifted = teacher + random(3, 1, 4, 4, seed=2)
    assert abs(sdd_loss(shifted, teacher, torch.arange(3), **PUBLISHED).item()) < 1e-12
    # Logits of the image are equal here, but not those of regions.
    moved = sdd_loss(teacher.flip(2, 3), teacher, torch.arange(3), **PUBLISHED)
    assert moved.item() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_full(dtype: torch.dtype) -> None:
    student, teacher = (30 * random(2, 3, 4, 4, seed=seed).to(dtype) for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = sdd_loss(student, teacher, torch.arange(2), **PUBLISHED)
    expected = sdd_loss(student.float(), teacher.float(), torch.arange(2), **PUBLISHED)
    assert torch.equal(loss, expected)


def test_the_method_computes_the_loss_with_its_settings() -> None:
    where = pair_of_networks("resnet8", "resnet50", image_size=(24, 40))
    student, teacher = taps_of(where, 4)
    assert student.class_maps is not None
    assert teacher.class_maps is not None
    settings: dict[str, Any] = {"finest": 2, "complementary_weight": 1.5, "temperature": 3.0}
    batch = batch_of(4)
    loss = build("sdd", where, **settings)(student, teacher, batch)
    expected = naive_sdd(student.class_maps, teacher.class_maps, batch.labels, **settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("name", ["vgg11", "resnet8+fpn"])
def test_a_network_whose_embedding_is_no_mean_of_a_map_is_refused(role: str, name: str) -> None:
    where = pair_of_networks()
    shapes = probe_shapes(name, num_classes=10, in_channels=1, image_size=(32, 32))
    networks: dict[str, Any] = {role: shapes}
    changed = replace(where, **networks)
    with pytest.raises(ValueError, match=rf"class maps, but .* the {role} {name[:5]}.* does not"):
        SDD(SDD.Params(), changed)


def test_a_short_trial_learns(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    ShortTrial("sdd", digits_config, teacher_config, workspace).assert_learns(tmp_path)
