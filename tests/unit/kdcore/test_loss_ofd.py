"""The overhaul: the twin, margins from norms and measured, the teacher's norms, short trials."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_methods import (
    HARD,
    PAIRS,
    assert_never_waits,
    assert_sound,
    batch_of,
    build,
    leaves,
    pair_of_networks,
    random,
    taps_of,
)
from logit_methods import ShortTrial
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import adaptive_avg_pool2d

from kdcore import DataConfig, TeacherConfig
from kdcore.contract.layer_pairs import resolve_layers
from kdcore.contract.network_pair import NetworkPair
from kdcore.methods.ofd import OFD, ExpectedMargin, MeasuredMargin, expected_margin, ofd_loss
from tests.cases import Case
from tests.twins.ofd import naive_expected_margin, naive_ofd

# Of the images: some maps of the deepest network are then one pixel.
SMALL = (8, 12)

SIZES = [(2, 3, 4, 4), (1, 5, 6, 3), (3, 1, 1, 1)]

normalizations = pytest.mark.parametrize("normalization", ["sum", "mean"])


def _with_norms(where: NetworkPair, *taps: str) -> NetworkPair:
    norms = {}
    for number, tap in enumerate(taps):
        channels = where.teacher.maps[tap][0]
        norms[tap] = random(channels, seed=number), random(channels, seed=50 + number)
    return replace(where, teacher_norms=norms)


# The partial distance


@normalizations
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradient_are_those_of_the_twin(size: tuple[int, ...], normalization: Any) -> None:
    student, teacher = random(*size, seed=1), random(*size, seed=2)
    margin = -random(size[1], seed=3).abs()
    student.requires_grad_()
    loss = ofd_loss(student, teacher, margin, normalization=normalization)
    naive = naive_ofd(student, teacher, margin, normalization=normalization)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    (ours,) = torch.autograd.grad(loss, student)
    (masked,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, masked, rtol=1e-10, atol=1e-14)


@normalizations
def test_the_gradient_is_that_of_finite_differences(normalization: Any) -> None:
    student, teacher = random(2, 3, 3, 2, seed=1), random(2, 3, 3, 2, seed=2)
    margin = torch.tensor([-0.1, -0.7, -2.0], dtype=torch.float64)
    assert gradcheck(
        lambda shown: ofd_loss(shown, teacher, margin, normalization=normalization),
        student.requires_grad_(),
    )


def test_negative_values_cost_nothing_below_the_teachers_and_down_to_the_margin_above() -> None:
    def cost(student: float, teacher: float, margin: float = -1.0) -> float:
        shown, taught = (torch.full((1, 1, 1, 1), value) for value in (student, teacher))
        return ofd_loss(shown, taught, torch.tensor([margin]), normalization="sum").item()

    assert cost(-5.0, -0.5) == 0  # both inactive, the student more so
    assert cost(-0.2, -0.5) == pytest.approx(0.09)
    assert cost(-1.0, -9.0) == 0  # the margin is low enough
    assert cost(0.5, -9.0) == pytest.approx(2.25)
    assert cost(-1.0, 2.0) == pytest.approx(9.0)  # positive values are matched from both sides
    assert cost(3.0, 2.0) == pytest.approx(1.0)


def test_it_is_zero_at_equality_above_the_margin() -> None:
    teacher = random(2, 3, 4, 5, seed=1)
    margin = torch.full((3,), -10.0, dtype=torch.float64)
    assert ofd_loss(teacher.clone(), teacher, margin, normalization="sum").item() == 0


def test_sum_and_mean_differ_by_the_units_of_an_image() -> None:
    student, teacher = random(3, 2, 4, 5, seed=1), random(3, 2, 4, 5, seed=2)
    margin = torch.tensor([-0.5, -0.6], dtype=torch.float64)
    total = ofd_loss(student, teacher, margin, normalization="sum").item()
    mean = ofd_loss(student, teacher, margin, normalization="mean").item()
    assert total == pytest.approx(2 * 4 * 5 * mean, rel=1e-10)


def test_halves_are_summed_in_full() -> None:
    student = torch.full((16, 64, 16, 16), 4.0, dtype=torch.float16)
    margin = torch.full((64,), -1.0)
    loss = ofd_loss(student, -student, margin, normalization="sum")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(64 * 16 * 16 * 25)


# Margins


def test_the_margin_of_a_norm_is_its_twin() -> None:
    gamma, beta = random(200, seed=1), random(200, seed=2)
    expected = naive_expected_margin(gamma, beta)
    assert torch.allclose(expected_margin(gamma, beta), expected, rtol=1e-8)


def test_the_margin_of_a_norm_is_the_mean_of_what_is_negative() -> None:
    gamma, beta = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.3, -0.4, 1.0])
    draws = gamma.double() * random(200_000, 3, seed=1) + beta.double()
    negative = draws.clamp(max=0)
    measured = negative.sum(0) / (negative < 0).sum(0)
    assert torch.allclose(expected_margin(gamma, beta).double(), measured, atol=0.01)


def test_a_channel_that_is_hardly_ever_negative_has_a_margin_of_three_deviations() -> None:
    gamma, beta = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 50.0])
    assert expected_margin(gamma, beta).tolist() == [-3.0, -6.0]


def test_a_constant_channel_has_its_own_value_as_margin_if_negative() -> None:
    gamma, beta = torch.zeros(3), torch.tensor([-0.7, 0.0, 0.7])
    assert expected_margin(gamma, beta).tolist() == pytest.approx([-0.7, 0.0, 0.0])


@pytest.mark.parametrize("gamma", [1e-30, -1e-8, 1e-3, 1e4])
@pytest.mark.parametrize("beta", [-1e4, -1.0, 0.0, 1.0, 1e4])
def test_every_norm_has_a_finite_margin(gamma: float, beta: float) -> None:
    margin = expected_margin(torch.tensor([gamma]), torch.tensor([beta])).item()
    assert -1e5 < margin <= 0


def test_a_measured_margin_is_the_mean_of_all_negative_values_so_far() -> None:
    margin = MeasuredMargin(3)
    batches = [random(4, 3, 2, 5, seed=seed).float() for seed in range(4)]
    for batch in batches:
        batch[:, 2] = batch[:, 2].abs()  # a channel that is never negative
    for number, batch in enumerate(batches):
        seen = torch.cat(batches[: number + 1]).transpose(0, 1).flatten(1)
        expected = [channel[channel < 0].mean().item() for channel in seen[:2]]
        for _ in range(2):  # a loss that leads to no step does not count its batch
            assert margin(batch).tolist() == pytest.approx([*expected, 0.0], rel=1e-5)
        margin.remember()
        margin.remember()
    assert set(margin.state_dict()) == {"negative_sum", "negative_count"}


def test_measured_margins_count_beyond_the_digits_of_a_float() -> None:
    margin = MeasuredMargin(1)
    margin.negative_count.fill_(2**24)
    margin.negative_sum.fill_(-float(2**24))
    margin(torch.full((1, 1, 1, 1), -1.0))
    margin.remember()
    assert margin.negative_count.item() == 2**24 + 1
    assert margin.negative_sum.item() == -(2**24 + 1)


# The method


@pytest.mark.parametrize("layers", ["all", "stage3:stage2, stem:stage1, stage1:stage1"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_stages_count_half_as_much_the_earlier_they_come(
    pair: tuple[str, str], layers: str
) -> None:
    where = _with_norms(pair_of_networks(*pair, image_size=SMALL), "stage1", "stage2", "stage3")
    method = build("ofd", where, layers=layers).double()
    assert isinstance(method, OFD)
    student, teacher = taps_of(where, 3)
    expected = 0.0
    pairs = resolve_layers(layers, where.student, where.teacher)
    for number, (tap, to_teacher) in enumerate(zip(pairs, method.connectors, strict=True)):
        ours, theirs = student.preactivations[tap.student], teacher.preactivations[tap.teacher]
        size = tuple(min(a, b) for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True))
        ours, theirs = adaptive_avg_pool2d(ours, size), adaptive_avg_pool2d(theirs, size)
        if tap.teacher in where.teacher_norms:
            margin = naive_expected_margin(*where.teacher_norms[tap.teacher])
        else:
            channels = theirs.transpose(0, 1).flatten(1)
            negative = (channels < 0).sum(1).clamp(min=1)
            margin = channels.clamp(max=0).sum(1) / negative
        part = naive_ofd(to_teacher(ours), theirs, margin, normalization="sum")
        expected += 2.0 ** (number - len(pairs) + 1) * part.item()
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(expected, rel=1e-6)


def test_margins_are_measured_on_request_and_where_there_is_no_norm() -> None:
    where = _with_norms(pair_of_networks(), "stage1", "stage3")
    partly, measured = build("ofd", where), build("ofd", where, margin="measured")
    assert isinstance(partly, OFD)
    assert isinstance(measured, OFD)
    kinds = [type(margin) for margin in partly.margins]
    assert kinds == [ExpectedMargin, MeasuredMargin, ExpectedMargin]
    assert all(isinstance(margin, MeasuredMargin) for margin in measured.margins)


def test_measured_margins_move_into_the_checkpoint_with_each_step() -> None:
    where = pair_of_networks()
    method = build("ofd", where)
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 3))
    method(student, teacher, batch_of(3))
    state = {name: value.clone() for name, value in method.state_dict().items()}
    assert not state["margins.0.negative_count"].any()
    method.after_step()
    kept = method.state_dict()
    negative = (teacher.preactivations["stage1"] < 0).sum((0, 2, 3))
    assert torch.equal(kept["margins.0.negative_count"], negative)
    again = build("ofd", where)
    again.load_state_dict(kept)
    other = teacher.changed(lambda value: value.flip(0) - 0.3)
    assert torch.equal(again(student, other, batch_of(3)), method(student, other, batch_of(3)))


@pytest.mark.parametrize(("teacher_bn", "batch_statistics"), [("eval", False), ("batch", True)])
def test_the_teachers_norms_use_what_was_asked_for(teacher_bn: str, batch_statistics: bool) -> None:
    method = build("ofd", pair_of_networks(), teacher_bn=teacher_bn)
    assert method.teacher_batch_statistics == batch_statistics


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_hard_maps_give_a_finite_loss_and_gradient_with_margins_of_norms(
    pair: tuple[str, str],
) -> None:
    where = _with_norms(pair_of_networks(*pair), "stage1", "stage2", "stage3")
    outputs = [taps.changed(Tensor.float) for taps in taps_of(where, 4)]
    for hardness, harden in HARD.items():
        student, teacher = harden(*outputs)
        batch = batch_of(len(student.logits))
        for autocast in (False, True):
            with Case(hardness, *["autocast"] * autocast):
                method = build("ofd", where).float()
                assert_sound(method, student, teacher, batch=batch, autocast=autocast)


def test_the_margin_takes_no_gradient() -> None:
    where = pair_of_networks()
    method = build("ofd", where, margin="measured")
    taps = (taps.changed(Tensor.float) for taps in taps_of(where, 3))
    student, teacher = (leaves(value) for value in taps)
    method(student, teacher, batch_of(3)).backward()
    method.after_step()
    assert not any(value.requires_grad for value in method.buffers())


def test_margins_of_norms_never_wait_for_the_device() -> None:
    where = _with_norms(pair_of_networks(), "stage1", "stage2", "stage3")
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 4))
    assert_never_waits(build("ofd", where).float(), student, teacher, batch_of(4))


def test_it_learns_from_the_teachers_batch_statistics(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    params = {"margin": "measured", "teacher_bn": "batch"}
    trial = ShortTrial("ofd", digits_config, teacher_config, workspace, **params)
    trial.assert_learns(tmp_path)
