"""Hints: the twin, the regressor between any two maps, the two modes, short trials."""

from pathlib import Path

import pytest
import torch
from feature_methods import (
    PAIRS,
    assert_sound,
    batch_of,
    build,
    pair_of_networks,
    random,
    taps_of,
)
from logit_methods import ShortTrial
from pydantic import ValidationError
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import adaptive_avg_pool2d

from kdcore import DataConfig, TeacherConfig
from kdcore.contract.layer_pairs import resolve_layers
from kdcore.methods.fitnet import FitNet, fitnet_loss
from tests.twins.fitnet import naive_fitnet

# Of the images: some maps of the deepest network are then one pixel.
SMALL = (8, 12)

SIZES = [(2, 3, 4, 4), (1, 5, 6, 3), (3, 1, 1, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_the_loss_is_its_twin(size: tuple[int, ...]) -> None:
    regressed, teacher = random(*size, seed=1), random(*size, seed=2)
    expected = naive_fitnet(regressed, teacher).item()
    assert fitnet_loss(regressed, teacher).item() == pytest.approx(expected, rel=1e-8)
    assert gradcheck(fitnet_loss, (regressed.requires_grad_(), teacher))


def test_the_loss_is_zero_for_equal_maps() -> None:
    hint = random(2, 3, 4, 5, seed=1)
    assert fitnet_loss(hint, hint.clone()).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_full(dtype: torch.dtype) -> None:
    # 300^2 is beyond float16.
    strong = torch.full((1, 1, 2, 2), 300.0).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fitnet_loss(strong, -strong)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(600.0**2)


@pytest.mark.parametrize("layers", ["middle", "all", "stem:stage3", "stage3:stem"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_regressor_stands_between_any_two_maps(pair: tuple[str, str], layers: str) -> None:
    where = pair_of_networks(*pair, image_size=SMALL)
    method = build("fitnet", where, layers=layers).double()
    assert isinstance(method, FitNet)
    student, teacher = taps_of(where, 3)
    expected = 0.0
    pairs = resolve_layers(layers, where.student, where.teacher)
    for regressor, (ours, theirs) in zip(
        method.regressors,
        ((student.maps[p.student], teacher.maps[p.teacher]) for p in pairs),
        strict=True,
    ):
        size = tuple(min(a, b) for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True))
        guided, hint = adaptive_avg_pool2d(ours, size), adaptive_avg_pool2d(theirs, size)
        expected += naive_fitnet(regressor(guided), hint).item()
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(expected, rel=1e-8)


def test_only_without_a_relu_can_negative_values_be_predicted() -> None:
    maps = random(4, 16, 8, 8, seed=1).float()
    for relu in (True, False):
        method = build("fitnet", pair_of_networks(), relu=relu, layers="stage1:stage1")
        assert isinstance(method, FitNet)
        assert (method.regressors[0](maps).min().item() < 0) == (not relu)


def test_one_image_whose_map_is_one_pixel_is_enough() -> None:
    where = pair_of_networks(image_size=(4, 4))
    method = build("fitnet", where, layers="last")
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 1))
    assert student.maps["stage3"].shape == (1, 64, 1, 1)
    assert_sound(method, student, teacher, batch=batch_of(1))


def test_it_is_joint_as_published_in_the_fields_codes() -> None:
    method = build("fitnet", pair_of_networks())
    assert method.preparation_epochs(240) == 0
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(pair_of_networks(), 4))
    first = method(student, teacher, batch_of(4, epoch=1, epochs=240))
    last = method(student, teacher, batch_of(4, epoch=240, epochs=240))
    assert first.item() == last.item() > 0


def test_in_two_stages_hints_come_first_and_then_contribute_nothing() -> None:
    where = pair_of_networks()
    method = build("fitnet", where, preparation_share=0.125)
    joint = build("fitnet", where)
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 4))
    assert method.preparation_epochs(240) == 30
    during = method(student, teacher, batch_of(4, epoch=30, epochs=240))
    assert during.item() == joint(student, teacher, batch_of(4)).item()
    leaf = student.changed(lambda value: value.clone().requires_grad_())
    after = method(leaf, teacher, batch_of(4, epoch=31, epochs=240))
    assert after.item() == 0
    after.backward()
    grads = [value.grad for value in leaf.maps.values()]
    assert not any(grad.any() for grad in grads if grad is not None)
    assert all(parameter.grad is None for parameter in method.parameters())


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_no_training_is_refused(share: float) -> None:
    with pytest.raises(ValidationError, match="preparation_share"):
        FitNet.Params(preparation_share=share)


def test_it_learns_in_two_stages(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    trial = ShortTrial("fitnet", digits_config, teacher_config, workspace, preparation_share=0.6)
    first, second, third = (report.train_terms["fitnet"] for report in trial.reports(tmp_path))
    assert first > second > third == 0
