"""Activation boundaries: the twin, signs, scales, connectors, the two modes, short trials."""

from pathlib import Path
from typing import Any

import pytest
import torch
from feature_methods import (
    PAIRS,
    batch_of,
    build,
    pair_of_networks,
    random,
    taps_of,
)
from logit_methods import ShortTrial
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.functional import adaptive_avg_pool2d

from kdcore import DataConfig, TeacherConfig
from kdcore.contract.layer_pairs import resolve_layers
from kdcore.methods.ab import AB, ab_loss
from tests.twins.ab import naive_ab

# Of the images: some maps of the deepest network are then one pixel.
SMALL = (8, 12)

SIZES = [(2, 3, 4, 4), (1, 5, 6, 3), (3, 1, 1, 1)]

normalizations = pytest.mark.parametrize("normalization", ["sum", "mean"])


@normalizations
@pytest.mark.parametrize("margin", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradient_are_those_of_the_masked_twin(
    size: tuple[int, ...], margin: float, normalization: Any
) -> None:
    student, teacher = 2 * random(*size, seed=1), random(*size, seed=2)
    student.requires_grad_()
    settings = {"margin": margin, "normalization": normalization}
    loss, naive = ab_loss(student, teacher, **settings), naive_ab(student, teacher, **settings)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    (ours,) = torch.autograd.grad(loss, student)
    (masked,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, masked, rtol=1e-10, atol=1e-14)


@normalizations
def test_the_gradient_is_that_of_finite_differences(normalization: Any) -> None:
    student, teacher = 2 * random(2, 3, 3, 2, seed=1), random(2, 3, 3, 2, seed=2)
    assert gradcheck(
        lambda shown: ab_loss(shown, teacher, margin=1.0, normalization=normalization),
        student.requires_grad_(),
    )


@normalizations
def test_it_is_zero_on_the_teachers_side_of_every_boundary(normalization: Any) -> None:
    teacher = random(2, 3, 4, 5, seed=1)
    student = torch.where(teacher > 0, 1.0, -1.0) * (1.0 + random(2, 3, 4, 5, seed=2).abs())
    assert ab_loss(student, teacher, margin=1.0, normalization=normalization).item() == 0
    assert ab_loss(-student, teacher, margin=1.0, normalization=normalization).item() > 0


def test_of_the_teacher_only_signs_count_and_zero_is_inactive() -> None:
    student, teacher = random(2, 3, 4, 4, seed=1), random(2, 3, 4, 4, seed=2)
    settings: dict[str, Any] = {"margin": 1.0, "normalization": "mean"}
    loss = ab_loss(student, teacher, **settings)
    assert torch.equal(ab_loss(student, teacher.sign() * 7, **settings), loss)
    silent = torch.zeros_like(teacher)
    asked = ab_loss(student, silent, **settings)
    assert asked.item() == pytest.approx((1 + student).relu().square().mean().item())


def test_the_sum_is_three_thousandths_of_an_images_units() -> None:
    student, teacher = random(3, 2, 4, 5, seed=1), random(3, 2, 4, 5, seed=2)
    total = ab_loss(student, teacher, margin=1.0, normalization="sum").item()
    mean = ab_loss(student, teacher, margin=1.0, normalization="mean").item()
    assert total == pytest.approx(0.003 * 2 * 4 * 5 * mean, rel=1e-10)


def test_halves_are_summed_in_full() -> None:
    # 16 * 64 * 16 * 16 squares of 1 to 25 are beyond float16 at once.
    student = torch.full((16, 64, 16, 16), 4.0, dtype=torch.float16)
    loss = ab_loss(student, -student, margin=1.0, normalization="sum")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.003 * 64 * 16 * 16 * 25)


@pytest.mark.parametrize("layers", ["all", "stage3:stage2, stem:stage1, stage1:stage1"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_stages_count_half_as_much_the_earlier_they_come(
    pair: tuple[str, str], layers: str
) -> None:
    where = pair_of_networks(*pair, image_size=SMALL)
    method = build("ab", where, preparation_share=0.0, margin=0.5, layers=layers).double()
    assert isinstance(method, AB)
    student, teacher = taps_of(where, 3)
    pairs = resolve_layers(layers, where.student, where.teacher)
    expected = 0.0
    for number, (tap, to_teacher) in enumerate(zip(pairs, method.connectors, strict=True)):
        ours, theirs = student.preactivations[tap.student], teacher.preactivations[tap.teacher]
        size = tuple(min(a, b) for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True))
        ours, theirs = adaptive_avg_pool2d(ours, size), adaptive_avg_pool2d(theirs, size)
        part = naive_ab(to_teacher(ours), theirs, margin=0.5, normalization="sum")
        expected += 2.0 ** (number - len(pairs) + 1) * part.item()
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(expected, rel=1e-8)


def test_a_connector_stands_only_where_channels_differ_and_ends_in_no_relu() -> None:
    same = build("ab", pair_of_networks("resnet8", "resnet14"))
    assert isinstance(same, AB)
    assert not list(same.parameters())
    wider = build("ab", pair_of_networks("resnet8", "resnet8x4"))
    assert isinstance(wider, AB)
    assert len(list(wider.parameters())) == 3 * 3  # a kernel, a scale and a shift each
    assert not any(isinstance(module, nn.ReLU) for module in wider.modules())


def test_boundaries_come_first_and_then_contribute_nothing() -> None:
    where = pair_of_networks("resnet8", "resnet8x4")
    method, joint = build("ab", where), build("ab", where, preparation_share=0.0)
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 4))
    assert method.preparation_epochs(240) == 30
    assert joint.preparation_epochs(240) == 0
    expected = joint(student, teacher, batch_of(4)).item()
    assert expected > 0
    assert method(student, teacher, batch_of(4, epoch=30, epochs=240)).item() == expected
    assert method(student, teacher, batch_of(4, epoch=31, epochs=240)).item() == 0


def test_it_learns_in_its_preparation(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    trial = ShortTrial("ab", digits_config, teacher_config, workspace, preparation_share=0.6)
    first, second, third = (report.train_terms["ab"] for report in trial.reports(tmp_path))
    assert first > second > third == 0
