"""Channel-wise distillation: the twin, what it does not see, the alignment of channels."""

from pathlib import Path

import pytest
import torch
from feature_methods import PAIRS, batch_of, build, pair_of_networks, random, taps_of
from logit_methods import ShortTrial
from torch.autograd import gradcheck
from torch.nn.functional import adaptive_avg_pool2d

from kdcore import DataConfig, TeacherConfig
from kdcore.contract.layer_pairs import resolve_layers
from kdcore.methods.cwd import CWD, cwd_loss
from tests.twins.cwd import naive_cwd

SIZES = [(2, 3, 4, 4), (1, 5, 6, 3), (3, 2, 1, 7)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("size", SIZES)
def test_the_loss_and_its_gradient_are_the_twins(size: tuple[int, ...], temperature: float) -> None:
    student, teacher = 3 * random(*size, seed=1), 3 * random(*size, seed=2)
    student.requires_grad_()
    loss = cwd_loss(student, teacher, temperature=temperature)
    naive = naive_cwd(student, teacher, temperature=temperature)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    student, teacher = random(2, 3, 2, 4, seed=1).requires_grad_(), random(2, 3, 2, 4, seed=2)
    assert gradcheck(lambda maps: cwd_loss(maps, teacher, temperature=2.0), student)


def test_it_is_zero_where_channels_differ_by_a_constant_and_positive_elsewhere() -> None:
    teacher = random(3, 4, 5, 6, seed=1)
    shifted = teacher + random(3, 4, 1, 1, seed=2)
    assert abs(cwd_loss(shifted, teacher, temperature=4.0).item()) < 1e-12
    assert cwd_loss(teacher.flip(3), teacher, temperature=4.0).item() > 0.1
    # Scale is seen, unlike by attention maps: it decides how sharp a channel is.
    assert cwd_loss(2 * teacher, teacher, temperature=4.0).item() > 0.1


def test_what_counts_is_where_a_channel_is_active_not_which_channel() -> None:
    maps = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    maps[0, 0, 0, 0] = maps[0, 1, 0, 1] = 5.0
    # Each channel has 5 at one of two positions; exchanged, both are wrong in the same way.
    sure = torch.tensor([5.0, 0.0], dtype=torch.float64).softmax(0)
    expected = (sure * (sure / sure.flip(0)).log()).sum().item()
    assert cwd_loss(maps.flip(1), maps, temperature=1.0).item() == pytest.approx(expected)
    assert cwd_loss(maps, maps, temperature=1.0).item() == 0


def test_maps_of_one_position_have_nothing_to_say() -> None:
    student = random(2, 3, 1, 1, seed=1).requires_grad_()
    loss = cwd_loss(student, random(2, 3, 1, 1, seed=2), temperature=4.0)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_full(dtype: torch.dtype) -> None:
    student, teacher = (300 * random(2, 3, 4, 4, seed=seed).to(dtype) for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = cwd_loss(student, teacher, temperature=1.0)
    assert torch.equal(loss, cwd_loss(student.float(), teacher.float(), temperature=1.0))
    assert loss.isfinite()


@pytest.mark.parametrize("layers", ["last", "all", "stem:stage2"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_any_two_maps_are_brought_to_one_size(pair: tuple[str, str], layers: str) -> None:
    where = pair_of_networks(*pair, image_size=(24, 40))
    method = build("cwd", where, layers=layers, temperature=3.0).double()
    assert isinstance(method, CWD)
    student, teacher = taps_of(where, 3)
    expected = 0.0
    for align, taps in zip(
        method.align, resolve_layers(layers, where.student, where.teacher), strict=True
    ):
        ours, theirs = student.maps[taps.student], teacher.maps[taps.teacher]
        size = tuple(min(a, b) for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True))
        ours, theirs = adaptive_avg_pool2d(ours, size), adaptive_avg_pool2d(theirs, size)
        # Only maps of other channels are projected.
        assert bool(list(align.parameters())) == (ours.shape[1] != theirs.shape[1])
        expected += naive_cwd(align(ours), theirs, temperature=3.0).item()
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(expected, rel=1e-8)


def test_a_short_trial_learns(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    few = digits_config.model_copy(update={"train_images": 128})
    ShortTrial("cwd", few, teacher_config, workspace, layers="all").assert_learns(tmp_path)
