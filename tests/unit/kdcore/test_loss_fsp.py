"""The flow between stages: the twin, its size in memory, adapters, the two modes, short trials."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from feature_methods import (
    PAIRS,
    batch_of,
    build,
    pair_of_networks,
    random,
    taps_of,
    watched,
)
from logit_methods import ShortTrial
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.functional import max_pool2d

from kdcore import DataConfig, TeacherConfig
from kdcore.methods.fsp import FSP, flow, fsp_loss
from tests.twins.fsp import naive_flow, naive_fsp

# Of the images: some maps of the deepest network are then one pixel.
SMALL = (8, 12)

# Lower and upper map of the student, then of the teacher.
SIZES = {
    "one size": ((2, 3, 4, 4), (2, 5, 4, 4), (2, 3, 4, 4), (2, 5, 4, 4)),
    "upper smaller": ((1, 3, 8, 6), (1, 2, 4, 3), (1, 3, 4, 6), (1, 2, 2, 3)),
    "lower smaller": ((3, 2, 2, 3), (3, 4, 6, 3), (3, 2, 5, 4), (3, 4, 5, 4)),
    "crossed": ((2, 1, 3, 8), (2, 4, 6, 4), (2, 1, 7, 2), (2, 4, 5, 3)),
    "one pixel": ((2, 2, 1, 1), (2, 3, 1, 1), (2, 2, 2, 2), (2, 3, 1, 1)),
}


def _maps(case: str) -> list[Tensor]:
    return [random(*size, seed=number) for number, size in enumerate(SIZES[case])]


@pytest.mark.parametrize("case", SIZES)
def test_the_loss_is_its_twin(case: str) -> None:
    maps = _maps(case)
    assert fsp_loss(*maps).item() == pytest.approx(naive_fsp(*maps).item(), rel=1e-8)
    lower, upper, *teacher = maps
    assert gradcheck(
        lambda a, b: fsp_loss(a, b, *teacher), (lower.requires_grad_(), upper.requires_grad_())
    )


def test_a_flow_is_the_mean_of_products_and_the_larger_map_is_max_pooled() -> None:
    lower, upper = random(2, 3, 6, 8, seed=1), random(2, 4, 3, 4, seed=2)
    pooled = max_pool2d(lower, 2)
    expected = torch.einsum("bihw,bjhw->bij", pooled, upper) / 12
    assert torch.allclose(flow(lower, upper), expected)
    assert torch.allclose(flow(lower, upper), naive_flow(lower, upper))


def test_it_is_zero_for_networks_of_equal_flow() -> None:
    lower, upper = random(2, 3, 6, 8, seed=1), random(2, 4, 3, 4, seed=2)
    assert fsp_loss(lower, upper, lower.clone(), upper.clone()).item() == 0
    # Where the positions lie does not matter.
    both = [each.flip(2).flip(3) for each in (lower, upper)]
    assert fsp_loss(lower, upper, *both).item() == pytest.approx(0, abs=1e-20)


def test_no_tensor_of_all_products_is_made() -> None:
    lower, upper = random(4, 16, 16, 16, seed=1), random(4, 32, 16, 16, seed=2)
    lower.requires_grad_()
    with watched() as watch:
        fsp_loss(lower, upper, lower.detach(), upper).backward()
    assert watch.largest == upper.numel()  # and not 4 * 16 * 32 * 256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_full(dtype: torch.dtype) -> None:
    # 3,136 products of 100 * 100 have a sum beyond float16.
    strong = torch.full((1, 2, 56, 56), 100.0).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fsp_loss(strong, strong, strong * 0, strong * 0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1e8, rel=1e-5)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_it_adds_up_over_consecutive_stages_from_the_stem(pair: tuple[str, str]) -> None:
    where = pair_of_networks(*pair, image_size=SMALL)
    method = build("fsp", where, preparation_share=0.0).double()
    assert isinstance(method, FSP)
    assert (method.pairs[0].student, method.pairs[0].teacher) == ("stem", "stem")
    assert (method.pairs[-1].student, method.pairs[-1].teacher) == (
        where.student.stages[-1],
        where.teacher.stages[-1],
    )
    assert len(method.pairs) == 1 + min(len(where.student.stages), len(where.teacher.stages))
    student, teacher = taps_of(where, 3)
    expected = sum(
        naive_fsp(
            below(student.maps[low.student]),
            above(student.maps[high.student]),
            teacher.maps[low.teacher],
            teacher.maps[high.teacher],
        ).item()
        for (low, below), (high, above) in pairwise(zip(method.pairs, method.adapters, strict=True))
    )
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(expected, rel=1e-8)


def test_adapters_stand_only_where_channels_differ() -> None:
    same = build("fsp", pair_of_networks("resnet8", "resnet14"))
    assert not list(same.parameters())
    wider = build("fsp", pair_of_networks("resnet8", "resnet8x4"))
    assert isinstance(wider, FSP)
    kernels = [module for module in wider.adapters if isinstance(module, nn.Conv2d)]
    assert [kernel.out_channels for kernel in kernels] == [32, 64, 128, 256]
    assert all(kernel.kernel_size == (1, 1) for kernel in kernels)


def test_the_flow_comes_first_and_then_contributes_nothing() -> None:
    where = pair_of_networks("resnet8", "resnet8x4")
    method, joint = build("fsp", where), build("fsp", where, preparation_share=0.0)
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
    trial = ShortTrial("fsp", digits_config, teacher_config, workspace, preparation_share=0.6)
    first, second, third = (report.train_terms["fsp"] for report in trial.reports(tmp_path))
    assert first > second > third == 0
