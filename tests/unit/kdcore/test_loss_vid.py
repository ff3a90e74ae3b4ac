"""Variational information: the twin, its variances, what decays and what is kept, a short trial."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from feature_methods import (
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
from torch.nn.functional import softplus

from kdcore import DataConfig, TeacherConfig
from kdcore.contract.layer_pairs import resolve_layers
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Taps
from kdcore.methods.vid import VID, raw_variance, vid_loss
from kdcore.operations.match_spatial import match_spatial
from tests.twins.vid import naive_vid

SIZES = [(1, 3, 4, 4), (4, 5, 3, 7), (6, 2, 1, 1), (2, 1, 5, 2)]


@cache
def small(student: str, teacher: str) -> tuple[NetworkPair, Taps, Taps]:
    """Two networks on small images, and float32 outputs of both for six of them."""
    where = pair_of_networks(student, teacher, image_size=(8, 12))
    ours, theirs = (taps.changed(Tensor.float) for taps in taps_of(where, 6))
    return where, ours, theirs


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_loss_and_its_gradients_are_the_twins(size: tuple[int, ...]) -> None:
    predicted, teacher = random(*size, seed=1).requires_grad_(), random(*size, seed=2)
    raw = (3 * random(size[1], seed=3)).requires_grad_()
    loss, naive = vid_loss(predicted, teacher, raw), naive_vid(predicted, teacher, raw)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    ours = torch.autograd.grad(loss, (predicted, raw))
    theirs = torch.autograd.grad(naive, (predicted, raw))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-8, atol=1e-14)


def test_the_gradients_are_those_of_finite_differences() -> None:
    predicted, teacher = random(2, 3, 2, 3, seed=1), random(2, 3, 2, 3, seed=2)
    raw = random(3, seed=3)
    assert gradcheck(vid_loss, tuple(x.requires_grad_() for x in (predicted, teacher, raw)))


def test_it_is_the_gaussian_negative_log_likelihood_without_its_constant() -> None:
    predicted, teacher, raw = (
        random(2, 3, 4, 2, seed=1),
        random(2, 3, 4, 2, seed=2),
        random(3, seed=3),
    )
    deviation = (softplus(raw) + 1e-5).sqrt()[None, :, None, None]
    likelihood = torch.distributions.Normal(predicted, deviation).log_prob(teacher)
    constant = 0.5 * math.log(2 * math.pi)
    expected = -likelihood.mean().item() - constant
    assert vid_loss(predicted, teacher, raw).item() == pytest.approx(expected)


def test_equal_maps_give_the_mean_logarithm_of_the_deviations_which_may_be_negative() -> None:
    teacher = random(2, 2, 3, 3, seed=1)
    raw = torch.tensor([raw_variance(0.25), raw_variance(4.0)], dtype=torch.float64)
    assert vid_loss(teacher, teacher, raw).item() == pytest.approx(0.0, abs=1e-12)
    assert vid_loss(teacher, teacher, raw[:1].repeat(2)).item() == pytest.approx(math.log(0.5))


def test_the_variance_is_smallest_where_it_equals_the_mean_square() -> None:
    predicted, teacher = random(4, 1, 3, 3, seed=1), random(4, 1, 3, 3, seed=2)
    best = (predicted - teacher).square().mean().item()
    losses = [
        vid_loss(predicted, teacher, torch.tensor([raw_variance(best * factor)])).item()
        for factor in (0.5, 0.9, 1.0, 1.1, 2.0)
    ]
    assert min(losses) == losses[2]


@pytest.mark.parametrize("raw", [-1e4, -200.0, 0.0, 88.0, 200.0, 1e4])
def test_no_raw_variance_overflows(raw: float) -> None:
    # log(1 + e^raw) is infinite from 89 on, and 0 from -17 down.
    raws = torch.full((3,), raw).requires_grad_()
    predicted = random(2, 3, 2, 2, seed=1).float().requires_grad_()
    loss = vid_loss(predicted, random(2, 3, 2, 2, seed=2).float(), raws)
    loss.backward()
    assert loss.isfinite()
    for leaf in (predicted, raws):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("variance", [1e-3, 0.5, 5.0, 10.0, 1e3])
def test_a_raw_variance_gives_the_variance_that_it_was_made_from(variance: float) -> None:
    raw = torch.tensor(raw_variance(variance), dtype=torch.float64)
    assert (softplus(raw) + 1e-5).item() == pytest.approx(variance)


def test_the_logarithm_is_not_spread_over_the_map() -> None:
    size = (4, 8, 6, 5)
    predicted, raw = random(*size, seed=1).requires_grad_(), random(8, seed=3).requires_grad_()
    with watched() as watch:
        vid_loss(predicted, random(*size, seed=2), raw).backward()
    assert watch.largest == math.prod(size)


def test_halves_are_computed_in_full() -> None:
    # 300^2 is beyond float16.
    predicted, teacher = 300 * random(2, 3, 4, 4, seed=1).half(), random(2, 3, 4, 4, seed=2).half()
    raw = random(3, seed=3).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = vid_loss(predicted, teacher, raw)
    assert torch.equal(loss, vid_loss(predicted.float(), teacher.float(), raw))
    assert loss.isfinite()


@pytest.mark.parametrize("layers", ["all", "last", "stage2:stage1"])
def test_the_method_adds_up_over_its_pairs_of_layers(layers: str) -> None:
    where = pair_of_networks("resnet8", "resnet50", image_size=(8, 12))
    student, teacher = taps_of(where, 2)
    method = build("vid", where, layers=layers, initial_variance=2.0).double()
    assert isinstance(method, VID)
    expected = torch.zeros((), dtype=torch.float64)
    pairs = resolve_layers(layers, where.student, where.teacher)
    for pair, regressor in zip(pairs, method.regressors, strict=True):
        shown, taught = match_spatial(student.maps[pair.student], teacher.maps[pair.teacher])
        first, _, second, _, third = regressor
        for layer in (first, second):
            shown = torch.einsum("bchw,dc->bdhw", shown, layer.weight[:, :, 0, 0]).relu()
        predicted = torch.einsum("bchw,dc->bdhw", shown, third.weight[:, :, 0, 0])
        raw = torch.full((predicted.shape[1],), raw_variance(2.0), dtype=torch.float64)
        expected = expected + naive_vid(predicted, taught, raw)
    loss = method(student, teacher, batch_of(2))
    # The variances start in float32.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_every_layer_has_its_own_variances() -> None:
    where = pair_of_networks("resnet8", "resnet50", image_size=(8, 12))
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 2))
    method = build("vid", where)
    assert isinstance(method, VID)
    channels = [where.teacher.maps[pair.teacher][0] for pair in method.pairs]
    assert len(method.raw_variances) == sum(channels)
    method(student, teacher, batch_of(2)).backward()
    assert method.raw_variances.grad is not None
    for part in torch.split(method.raw_variances.grad, channels):
        assert part.any()


def test_variances_are_parameters_that_do_not_decay() -> None:
    method = build("vid", pair_of_networks())
    names = dict(method.named_parameters())
    assert method.undecayed == {"raw_variances"}
    assert isinstance(names["raw_variances"], nn.Parameter)
    assert "raw_variances" in method.state_dict()


def test_it_learns_its_variances_too(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    trial = ShortTrial("vid", digits_config, teacher_config, workspace)
    trial.assert_learns(tmp_path)
    raw = trial.helpers(tmp_path)["raw_variances"]
    assert (raw - raw_variance(5.0)).abs().min() > 1e-3
