"""MGD: the twin, the mask."""

from typing import Any

import pytest
import torch
from feature_methods import (
    batch_of,
    build,
    pair_of_networks,
    random,
    taps_of,
)
from torch import Tensor, nn
from torch.autograd import gradcheck

from kdcore.methods.mgd import MGD, Generator, mask_at_random, mgd_loss
from tests.twins.mgd import naive_generated, naive_mgd

SIZES = [(1, 3, 4, 4), (2, 5, 3, 6), (4, 2, 7, 1), (3, 4, 1, 1)]

every_mask = pytest.mark.parametrize("mask", ["channels", "positions"])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_loss_and_its_gradient_are_the_twins(size: tuple[int, ...]) -> None:
    generated, teacher = random(*size, seed=1).requires_grad_(), random(*size, seed=2)
    loss, naive = mgd_loss(generated, teacher), naive_mgd(generated, teacher)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    (ours,) = torch.autograd.grad(loss, generated)
    (theirs,) = torch.autograd.grad(naive, generated)
    assert torch.allclose(ours, theirs, rtol=1e-10)
    assert gradcheck(mgd_loss, (generated, teacher))


def test_the_loss_is_zero_at_equality_and_grows_with_the_map() -> None:
    small, large = torch.ones(3, 4, 2, 2), torch.ones(3, 8, 4, 2)
    assert mgd_loss(small, small.clone()).item() == 0
    assert mgd_loss(small, torch.zeros_like(small)).item() == 4 * 2 * 2
    assert mgd_loss(large, torch.zeros_like(large)).item() == 8 * 4 * 2


def test_sums_of_halves_stay_finite() -> None:
    # 64 channels of 16 x 16 squares of 300: 1.5e9, where float16 ends at 65,504.
    generated = torch.full((2, 64, 16, 16), 300.0, dtype=torch.float16)
    loss = mgd_loss(generated, torch.zeros_like(generated))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(64 * 16 * 16 * 300.0**2, rel=1e-6)


# The mask


def test_whole_channels_or_whole_positions_are_masked_each_image_on_its_own() -> None:
    torch.manual_seed(0)
    ones = torch.ones(5, 6, 4, 3)
    channels = mask_at_random(ones, mask="channels", masked_share=0.5)
    assert torch.equal(channels, channels[:, :, :1, :1].expand_as(channels))
    positions = mask_at_random(ones, mask="positions", masked_share=0.5)
    assert torch.equal(positions, positions[:, :1].expand_as(positions))
    for kept in (channels, positions):
        assert set(kept.unique().tolist()) == {0.0, 1.0}
        assert len({tuple(image.flatten().tolist()) for image in kept}) > 1


@every_mask
@pytest.mark.parametrize("masked_share", [0.0, 0.15, 0.75])
def test_the_share_that_is_masked_is_the_one_asked_for(mask: Any, masked_share: float) -> None:
    torch.manual_seed(0)
    kept = mask_at_random(torch.ones(50, 40, 8, 5), mask=mask, masked_share=masked_share)
    # 2,000 draws: a deviation of 0.01.
    assert 1 - kept.mean().item() == pytest.approx(masked_share, abs=0.04)


def test_what_is_kept_keeps_its_value() -> None:
    torch.manual_seed(0)
    values = random(4, 6, 3, 3, seed=1)
    kept = mask_at_random(values, mask="channels", masked_share=0.5)
    assert torch.equal(kept[kept != 0], values[kept != 0])


def test_the_mask_comes_from_torchs_own_generator() -> None:
    ones = torch.ones(4, 32, 2, 2)
    torch.manual_seed(3)
    first = mask_at_random(ones, mask="channels", masked_share=0.5)
    after = mask_at_random(ones, mask="channels", masked_share=0.5)
    torch.manual_seed(3)
    assert torch.equal(mask_at_random(ones, mask="channels", masked_share=0.5), first)
    assert not torch.equal(first, after)


# The generator


def _layer(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    return convolution.weight, convolution.bias


@every_mask
@pytest.mark.parametrize("channels", [(3, 5), (4, 4), (6, 2)])
def test_the_generator_aligns_masks_and_convolves_twice(
    mask: Any, channels: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    generator = Generator(*channels, mask=mask, masked_share=0.4).double()
    student_map = random(3, channels[0], 5, 4, seed=1)
    ones = torch.ones(3, channels[1], 5, 4, dtype=torch.float64)
    torch.manual_seed(1)
    kept = mask_at_random(ones, mask=mask, masked_share=0.4)
    assert 0 < kept.mean() < 1
    expected = naive_generated(
        student_map,
        kept,
        None if channels[0] == channels[1] else _layer(generator.align),
        _layer(generator.generate[0]),
        _layer(generator.generate[2]),
    )
    torch.manual_seed(1)
    assert torch.allclose(generator(student_map), expected, rtol=1e-10)


# The method


@pytest.mark.parametrize(
    ("layers", "stages"), [("last", ("stage3", "stage3")), ("stage1:stage3", ("stage1", "stage3"))]
)
def test_the_chosen_maps_are_compared_with_the_larger_pooled_to_the_smaller(
    layers: str, stages: tuple[str, str]
) -> None:
    where = pair_of_networks("resnet8", "resnet8x4")
    method = build("mgd", where, layers=layers, masked_share=0.0).double()
    assert isinstance(method, MGD)
    student, teacher = taps_of(where, 4)
    ours, theirs = student.maps[stages[0]], teacher.maps[stages[1]]
    factor = ours.shape[2] // theirs.shape[2]
    ours = ours.unflatten(2, (-1, factor)).unflatten(4, (-1, factor)).mean((3, 5))
    loss = method(student, teacher, batch_of(4))
    expected = naive_mgd(method.generators[0](ours), theirs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


def test_the_published_layer_is_the_last() -> None:
    assert MGD.Params().layers == "last"


def test_several_layers_have_a_generator_each_and_add_up() -> None:
    where = pair_of_networks("resnet8", "resnet14")
    method = build("mgd", where, layers="all", masked_share=0.0).double()
    assert isinstance(method, MGD)
    student, teacher = taps_of(where, 3)
    expected = sum(
        naive_mgd(generator(student.maps[stage]), teacher.maps[stage]).item()
        for stage, generator in zip(where.student.stages, method.generators, strict=True)
    )
    assert len(method.generators) == 3
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_nothing_or_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="masked_share"):
        MGD.Params(masked_share=share)
