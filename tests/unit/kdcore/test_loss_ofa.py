"""One for all: the twin, the enhanced target, exits of every stage, refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_methods import PAIRS, batch_of, build, taps_of
from feature_methods import pair_of_networks as pair_with_maps
from logit_methods import (
    SIZES,
    ShortTrial,
    assert_computes_halves_in_full,
    assert_sound,
    labels_of,
    random_logits,
)
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from kdcore import DataConfig, TeacherConfig
from kdcore.contract.taps import Mixed
from kdcore.methods.ofa import OFA, ofa_loss
from tests.twins.ofa import naive_ofa

PUBLISHED: dict[str, Any] = {"enhancement": 1.5, "temperature": 1.0}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("enhancement", [1.0, 1.5, 2.0])
@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_the_loss_is_its_twin(
    images: int, classes: int, enhancement: float, temperature: float
) -> None:
    student, teacher = (random_logits(images, classes, seed=seed) for seed in (1, 2))
    labels = labels_of(images, classes)
    settings: dict[str, Any] = {"enhancement": enhancement, "temperature": temperature}
    loss = ofa_loss(student, teacher, labels, **settings)
    expected = naive_ofa(student, teacher, labels, **settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_gradient_is_that_of_finite_differences_and_of_the_twin() -> None:
    student = random_logits(3, 5, seed=1).requires_grad_()
    teacher, labels = random_logits(3, 5, seed=2), labels_of(3, 5)
    assert gradcheck(lambda logits: ofa_loss(logits, teacher, labels, **PUBLISHED), student)
    (ours,) = torch.autograd.grad(ofa_loss(student, teacher, labels, **PUBLISHED), student)
    (naive,) = torch.autograd.grad(naive_ofa(student, teacher, labels, **PUBLISHED), student)
    assert torch.allclose(ours, naive, rtol=1e-8, atol=1e-12)


def test_without_enhancement_it_is_cross_entropy_with_the_teacher() -> None:
    student, teacher = random_logits(4, 6, seed=1), random_logits(4, 6, seed=2)
    loss = ofa_loss(student, teacher, labels_of(4, 6), enhancement=1.0, temperature=1.0)
    assert loss.item() == pytest.approx(cross_entropy(student, teacher.softmax(1)).item())


def test_enhancement_makes_the_target_count_more_and_the_others_less() -> None:
    teacher, labels = random_logits(1, 6, seed=2), torch.tensor([3])
    student = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    shares = []
    for enhancement in (1.0, 1.5, 2.0):
        loss = ofa_loss(student, teacher, labels, enhancement=enhancement, temperature=1.0)
        (gradient,) = torch.autograd.grad(loss, student)
        # Of equal probabilities the gradient is the sum of all weights / 6 less the class's own.
        weights = naive_weights(teacher[0], 3, enhancement)
        assert torch.allclose(gradient[0], weights.sum() / 6 - weights)
        shares.append((weights[3] / weights.sum()).item())
    assert shares[0] < shares[1] < shares[2]


def naive_weights(teacher: Tensor, label: int, enhancement: float) -> Tensor:
    p = teacher.softmax(0)
    weights = p**enhancement
    weights[label] = (1 + p[label]) ** enhancement - 1
    return weights


def test_hard_logits_give_a_finite_loss_and_gradient() -> None:
    assert_sound(lambda s, t: ofa_loss(s, t, labels_of(*s.shape), **PUBLISHED))


def test_halves_are_computed_in_full() -> None:
    assert_computes_halves_in_full(lambda s, t: ofa_loss(s, t, labels_of(*s.shape), **PUBLISHED))


def test_a_mixed_image_has_the_mean_over_a_target_that_is_drawn_by_the_shares() -> None:
    student, teacher = random_logits(1, 6, seed=1), random_logits(1, 6, seed=2)
    first, second = torch.tensor([2]), torch.tensor([5])
    mixed = Mixed(second, torch.tensor([0.7], dtype=torch.float64))
    loss = ofa_loss(student, teacher, first, **PUBLISHED, mixed=mixed).item()
    apart = [ofa_loss(student, teacher, each, **PUBLISHED).item() for each in (first, second)]
    assert loss == pytest.approx(0.7 * apart[0] + 0.3 * apart[1])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_stage_has_an_exit_as_deep_as_what_it_leaves_out(pair: tuple[str, str]) -> None:
    where = pair_with_maps(*pair, image_size=(24, 40))
    settings: dict[str, Any] = {"enhancement": 1.5, "temperature": 2.0}
    method = build("ofa", where, exits_weight=0.5, **settings).double()
    assert isinstance(method, OFA)
    student, teacher = taps_of(where, 4)
    batch = batch_of(4)
    expected = naive_ofa(student.logits, teacher.logits, batch.labels, **settings)
    assert len(method.exits) == len(where.student.stages)
    width = max(where.student.embedding_width, where.teacher.embedding_width)
    for depth, (stage, leave) in enumerate(zip(where.student.stages, method.exits, strict=True)):
        logits = leave(student.maps[stage])
        assert logits.shape == (4, 10)
        halvings = [m for m in leave.modules() if getattr(m, "stride", None) == (2, 2)]
        assert len(halvings) == len(method.exits) - 1 - depth
        assert [*leave.modules()][-1].in_features == width
        expected = expected + 0.5 * naive_ofa(logits, teacher.logits, batch.labels, **settings)
    assert method(student, teacher, batch).item() == pytest.approx(expected.item(), rel=1e-8)


def test_a_student_without_maps_is_refused_and_a_teacher_without_is_not() -> None:
    where = pair_with_maps()
    student = replace(where.student, stages=(), maps={}, stem="")
    with pytest.raises(ValueError, match="resnet8 has no spatial maps, from which exits"):
        OFA(OFA.Params(), replace(where, student=student))
    teacher = replace(where.teacher, stages=(), maps={}, stem="")
    assert OFA(OFA.Params(), replace(where, teacher=teacher)).pairs == ()


def test_a_short_trial_learns(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    few = digits_config.model_copy(update={"train_images": 128})
    ShortTrial("ofa", few, teacher_config, workspace).assert_learns(tmp_path)
