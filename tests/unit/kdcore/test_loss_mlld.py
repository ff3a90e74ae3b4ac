"""Multi-level logits: the twin, both views, and the second view of images that it reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_methods import batch_of, build, pair_of_networks, taps_of
from logit_methods import (
    SIZES,
    ShortTrial,
    assert_computes_halves_in_full,
    assert_sound,
    random_logits,
)
from torch.autograd import gradcheck

from kdcore import DataConfig, TeacherConfig, TrialConfig
from kdcore.methods.mlld import mlld_loss
from tests.twins.mlld import naive_mlld


@pytest.mark.parametrize(("images", "classes"), SIZES)
@pytest.mark.parametrize("relation_weight", [0.0, 1.0, 3.0])
def test_the_loss_and_its_gradient_are_the_twins(
    images: int, classes: int, relation_weight: float
) -> None:
    student = random_logits(images, classes, seed=1).requires_grad_()
    teacher = random_logits(images, classes, seed=2)
    loss, naive = (
        each(student, teacher, relation_weight=relation_weight) for each in (mlld_loss, naive_mlld)
    )
    assert loss.item() == pytest.approx(naive.item(), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    student, teacher = random_logits(3, 4, seed=1).requires_grad_(), random_logits(3, 4, seed=2)
    assert gradcheck(lambda logits: mlld_loss(logits, teacher, relation_weight=2.0), student)


def test_hard_logits_and_halves() -> None:
    assert_sound(lambda student, teacher: mlld_loss(student, teacher, relation_weight=1.0))
    assert_computes_halves_in_full(
        lambda student, teacher: mlld_loss(student, teacher, relation_weight=1.0)
    )


def test_both_views_have_the_same_part() -> None:
    where = pair_of_networks()
    student, teacher = taps_of(where, 4)
    assert student.strong_logits is not None
    assert teacher.strong_logits is not None
    method, batch = build("mlld", where, relation_weight=3.0), batch_of(4)
    weak, strong = (
        naive_mlld(*logits, relation_weight=3.0).item()
        for logits in (
            (student.logits, teacher.logits),
            (student.strong_logits, teacher.strong_logits),
        )
    )
    assert method(student, teacher, batch).item() == pytest.approx((weak + strong) / 2)
    right = replace(student, strong_logits=teacher.strong_logits)
    assert method(right, teacher, batch).item() == pytest.approx(weak / 2)


def test_mixed_images_are_refused(digits_config: DataConfig, teacher_config: TeacherConfig) -> None:
    data: dict[str, Any] = digits_config.model_dump() | {"augmentation": "strong"}
    with pytest.raises(
        ValueError, match=r"objective has mlld, but data\.augmentation mixes images"
    ):
        TrialConfig.model_validate(
            {
                "data": data,
                "teacher": teacher_config,
                "student": "resnet8",
                "objective": [{"method": "mlld"}],
                "training": {"epochs": 1},
            }
        )


def test_a_short_trial_learns(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    ShortTrial("mlld", digits_config, teacher_config, workspace).assert_learns(tmp_path)
