"""Wasserstein's distance of maps: the twin, what it does not see, hard regions, the decay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from feature_methods import PAIRS, batch_of, build, pair_of_networks, random, taps_of
from logit_methods import ShortTrial
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import adaptive_avg_pool2d

from kdcore import DataConfig, TeacherConfig
from kdcore.contract.layer_pairs import resolve_layers
from kdcore.methods.wkd_f import WKDF, wkd_f_loss
from tests.twins.wkd_f import naive_wkd_f

PUBLISHED: dict[str, Any] = {"mean_ratio": 4.0, "grid": 1}
SIZES = [(2, 3, 4, 4), (1, 5, 7, 6), (3, 2, 1, 9), (2, 3, 1, 1)]


@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_the_loss_and_its_gradient_are_the_twins(size: tuple[int, ...], grid: int) -> None:
    # Far from 0 in some channels, where a difference of squares would lose digits.
    shift = 5 * random(1, size[1], 1, 1, seed=3)
    projected = (random(*size, seed=1) + shift).requires_grad_()
    teacher = 2 * random(*size, seed=2)
    settings: dict[str, Any] = {"mean_ratio": 3.0, "grid": grid}
    loss = wkd_f_loss(projected, teacher, **settings)
    naive = naive_wkd_f(projected, teacher, **settings)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-9)
    (ours,) = torch.autograd.grad(loss, projected)
    (theirs,) = torch.autograd.grad(naive, projected)
    assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_the_gradient_is_that_of_finite_differences() -> None:
    projected, teacher = random(2, 3, 4, 5, seed=1).requires_grad_(), random(2, 3, 4, 5, seed=2)
    assert gradcheck(lambda maps: wkd_f_loss(maps, teacher, mean_ratio=2.0, grid=2), projected)


def test_it_sees_how_much_and_how_unevenly_but_not_where_in_a_region() -> None:
    teacher = random(2, 3, 4, 4, seed=1)
    moved = teacher.flip(2, 3)
    assert abs(wkd_f_loss(moved, teacher, mean_ratio=4.0, grid=1).item()) < 1e-15
    assert wkd_f_loss(moved, teacher, mean_ratio=4.0, grid=2).item() > 0.1
    # A shift of 0.5 in each of three channels; and twice the deviation.
    shifted = wkd_f_loss(teacher + 0.5, teacher, mean_ratio=4.0, grid=1)
    assert shifted.item() == pytest.approx(4 * 3 * 0.25)
    mean = teacher.mean((2, 3), keepdim=True)
    deviation = (teacher - mean).square().mean((2, 3)).sqrt()
    spread = wkd_f_loss(mean + 2 * (teacher - mean), teacher, mean_ratio=4.0, grid=1)
    assert spread.item() == pytest.approx(deviation.square().sum(1).mean().item(), rel=1e-3)


@pytest.mark.parametrize("level", [0.0, 1.0, 1e4])
def test_even_regions_have_a_moderate_gradient(level: float) -> None:
    projected = torch.full((2, 3, 4, 4), level).requires_grad_()
    loss = wkd_f_loss(projected, random(2, 3, 4, 4, seed=1).float(), **PUBLISHED)
    loss.backward()
    assert loss.isfinite()
    assert projected.grad is not None
    assert projected.grad.isfinite().all()
    assert projected.grad.abs().max() < 10 * max(level, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_full(dtype: torch.dtype) -> None:
    projected, teacher = (300 * random(2, 3, 4, 4, seed=seed).to(dtype) for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = wkd_f_loss(projected, teacher, **PUBLISHED)
    assert torch.equal(loss, wkd_f_loss(projected.float(), teacher.float(), **PUBLISHED))
    assert loss.isfinite()


@pytest.mark.parametrize("layers", ["last", "all", "stem:stage2"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_any_two_maps_are_brought_to_one_size_and_projected(
    pair: tuple[str, str], layers: str
) -> None:
    where = pair_of_networks(*pair, image_size=(24, 40))
    method = build("wkd_f", where, layers=layers, grid=2, decay_start=1.0).double()
    assert isinstance(method, WKDF)
    student, teacher = taps_of(where, 3)
    expected = 0.0
    for projector, taps in zip(
        method.projectors, resolve_layers(layers, where.student, where.teacher), strict=True
    ):
        ours, theirs = student.maps[taps.student], teacher.maps[taps.teacher]
        size = tuple(min(a, b) for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True))
        ours, theirs = adaptive_avg_pool2d(ours, size), adaptive_avg_pool2d(theirs, size)
        expected += naive_wkd_f(projector(ours), theirs, mean_ratio=4.0, grid=2).item()
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(expected, rel=1e-8)


def test_the_loss_falls_over_the_last_epochs() -> None:
    where = pair_of_networks()
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 4))
    method = build("wkd_f", where)

    def value(epoch: int) -> float:
        return method(student, teacher, batch_of(4, epoch=epoch, epochs=240)).item()

    shares = [value(epoch) / value(1) for epoch in (150, 195, 240)]
    assert shares == pytest.approx([1, 0.5, 0])


def test_a_short_trial_learns(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    few = digits_config.model_copy(update={"train_images": 128})
    ShortTrial("wkd_f", few, teacher_config, workspace, decay_start=1.0).assert_learns(tmp_path)
