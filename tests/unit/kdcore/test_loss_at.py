"""Attention: the twins, its scale, gradients by the pixels, short trials."""

from pathlib import Path
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
from logit_methods import ShortTrial
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from kdcore import DataConfig, TeacherConfig
from kdcore.backbones.catalogue import build_backbone
from kdcore.contract.layer_pairs import resolve_layers
from kdcore.contract.taps import Tap, Taps
from kdcore.methods.at import AT, at_loss, flip_symmetry_loss, gradient_at_loss
from kdcore.operations.attention import attention
from tests.twins.at import naive_at, naive_flip_symmetry, naive_gradient_at

# Of the images: some maps of the deepest network are then one pixel.
SMALL = (8, 12)

MAP_SIZES = [
    ((2, 3, 4, 4), (2, 5, 4, 4)),
    ((1, 4, 8, 6), (1, 2, 4, 3)),
    ((3, 2, 3, 8), (3, 2, 6, 4)),
    ((2, 3, 5, 7), (2, 3, 3, 2)),
]

reductions = pytest.mark.parametrize("reduction", ["mean", "paper"])


# Attention maps


@reductions
@pytest.mark.parametrize("power", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("student_size", "teacher_size"), MAP_SIZES)
def test_the_loss_is_its_twin(
    student_size: tuple[int, ...], teacher_size: tuple[int, ...], power: int, reduction: Any
) -> None:
    student, teacher = random(*student_size, seed=1), random(*teacher_size, seed=2)
    expected = naive_at(student, teacher, power=power, reduction=reduction).item()
    loss = at_loss(student, teacher, power=power, reduction=reduction)
    assert loss.item() == pytest.approx(expected, rel=1e-8)


@reductions
@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_the_gradient_is_that_of_finite_differences(power: int, reduction: Any) -> None:
    student, teacher = random(2, 3, 4, 3, seed=1), random(2, 2, 2, 3, seed=2)
    assert gradcheck(
        lambda shown: at_loss(shown, teacher, power=power, reduction=reduction),
        student.requires_grad_(),
    )


@reductions
def test_equal_attention_costs_nothing_and_pulls_nowhere(reduction: Any) -> None:
    activation = random(3, 4, 5, 2, seed=1).requires_grad_()
    loss = at_loss(activation, activation.detach() * 1, power=2, reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert activation.grad is not None
    assert not activation.grad.any()


@pytest.mark.parametrize("power", [1, 2, 3])
def test_signs_do_not_count(power: int) -> None:
    # Pre-activations and sums of residual networks can be negative: |F|^3, and not F^3.
    student, teacher = random(2, 3, 4, 4, seed=1), random(2, 3, 4, 4, seed=2)
    loss = at_loss(student, teacher, power=power)
    assert at_loss(student.abs(), teacher, power=power).item() == pytest.approx(loss.item())


def test_the_reductions_are_a_mean_of_squares_and_half_a_length() -> None:
    student, teacher = random(1, 3, 4, 6, seed=1), random(1, 3, 4, 6, seed=2)
    mean = at_loss(student, teacher, power=2, reduction="mean").item()
    paper = at_loss(student, teacher, power=2, reduction="paper").item()
    assert mean == pytest.approx((2 * paper) ** 2 / 24, rel=1e-10)


@pytest.mark.parametrize("power", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_attention_has_length_one_however_strong_the_map(scale: float, power: int) -> None:
    # To the power of 8, activations of 0.001 and of 1,000 come near the limits of float32.
    activation = random(2, 8, 4, 4, seed=1).relu().float() * scale
    result = attention(activation, power=power)
    assert result.double().norm(dim=1).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
    assert torch.allclose(result, attention(activation / scale, power=power), rtol=1e-3)


@pytest.mark.parametrize("power", [1, 2, 4])
def test_a_zero_map_has_zero_attention_and_zero_gradient(power: int) -> None:
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    assert not attention(dead, power=power).any()
    at_loss(dead, random(2, 3, 4, 4, seed=1).float(), power=power).backward()
    assert dead.grad is not None
    assert not dead.grad.any()


@pytest.mark.parametrize("layers", ["all", "middle", "stage2:stage4", "stem:stage1"])
@reductions
def test_it_adds_up_over_every_pair_of_layers(layers: str, reduction: Any) -> None:
    # Networks of different numbers of stages: none is silently left out.
    where = pair_of_networks("resnet8", "resnet50")
    method = build("at", where, layers=layers, reduction=reduction, power=4)
    student, teacher = taps_of(where, 3)
    pairs = resolve_layers(layers, where.student, where.teacher)
    assert len(pairs) == (3 if layers == "all" else 1)
    expected = sum(
        naive_at(
            student.maps[pair.student], teacher.maps[pair.teacher], power=4, reduction=reduction
        ).item()
        for pair in pairs
    )
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(expected, rel=1e-8)


def test_of_wide_networks_it_reads_sums_or_stages_as_they_are_named() -> None:
    where = pair_of_networks("wrn_16_1", "wrn_40_1")
    images = random(4, 1, 8, 12, seed=1)
    taps = []
    for seed, network in enumerate((where.student, where.teacher)):
        backbone = build_backbone(network.network, num_classes=10, in_channels=1, seed=seed)
        named = frozenset(backbone.further)
        taps.append(backbone.double().taps(images, frozenset({Tap.MAPS}), named).detach())
    losses = {}
    for tap in ("stage1", "stage1_sum"):
        pairs = [(tap, tap.replace("1", number)) for number in "123"]
        layers = ", ".join(f"{ours}:{theirs}" for ours, theirs in pairs)
        loss = build("at", where, layers=layers)(*taps, batch_of(4)).item()
        expected = sum(
            naive_at(taps[0].maps[ours], taps[1].maps[theirs], power=2).item()
            for ours, theirs in pairs
        )
        assert loss == pytest.approx(expected, rel=1e-8)
        losses[tap] = loss
    assert losses["stage1"] != pytest.approx(losses["stage1_sum"], rel=0.05)


# Gradients by the pixels


@reductions
@pytest.mark.parametrize("size", [(2, 3, 4, 4), (1, 1, 5, 3), (3, 2, 2, 7)])
def test_the_losses_on_gradients_are_their_twins(size: tuple[int, ...], reduction: Any) -> None:
    first, second = random(*size, seed=1), random(*size, seed=2)
    gradient_loss = gradient_at_loss(first, second, reduction=reduction)
    expected = naive_gradient_at(first, second, reduction=reduction).item()
    assert gradient_loss.item() == pytest.approx(expected, rel=1e-8)
    symmetry_loss = flip_symmetry_loss(first, second, reduction=reduction)
    expected = naive_flip_symmetry(first, second, reduction=reduction).item()
    assert symmetry_loss.item() == pytest.approx(expected, rel=1e-8)
    leaves = (first.requires_grad_(), second.requires_grad_())
    assert gradcheck(lambda a, b: gradient_at_loss(a, b, reduction=reduction), leaves)
    assert gradcheck(lambda a, b: flip_symmetry_loss(a, b, reduction=reduction), leaves)


@reductions
def test_the_losses_on_gradients_are_zero_at_equality(reduction: Any) -> None:
    gradient = random(2, 3, 4, 5, seed=1).requires_grad_()
    equal = gradient_at_loss(gradient, gradient.detach() * 1, reduction=reduction)
    mirrored = flip_symmetry_loss(gradient, gradient.detach().flip(3), reduction=reduction)
    (equal + mirrored).backward()
    assert equal.item() == mirrored.item() == 0
    assert gradient.grad is not None
    assert not gradient.grad.any()


@reductions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", [torch.zeros_like, lambda v: v * 1e4, lambda v: v[:1]])
def test_hard_gradients_give_a_finite_loss_and_gradient(
    change: Any, dtype: torch.dtype, reduction: Any
) -> None:
    first, second = (change(random(4, 3, 6, 4, seed=seed)).to(dtype) for seed in (1, 2))
    first.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = gradient_at_loss(first, second, reduction=reduction)
        loss = loss + flip_symmetry_loss(first, second, reduction=reduction)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert first.grad is not None
    assert first.grad.isfinite().all()


def test_each_kind_asks_for_its_own_taps_and_the_class_for_all() -> None:
    where = pair_of_networks()
    assert build("at", where).needs == {Tap.MAPS}
    assert build("at", where, kind="gradient").needs == {Tap.INPUT_GRADIENT}
    symmetry = build("at", where, kind="flip symmetry").needs
    assert symmetry == {Tap.INPUT_GRADIENT, Tap.FLIPPED_INPUT_GRADIENT}
    assert symmetry | {Tap.MAPS} == AT.needs


def test_the_teacher_has_no_part_in_flip_symmetry() -> None:
    gradients = [random(3, 1, 4, 4, seed=seed) for seed in (1, 2)]
    student = Taps(
        random(3, 10, seed=3),
        random(3, 64, seed=4),
        input_gradient=gradients[0],
        flipped_input_gradient=gradients[1],
    )
    teacher = Taps(random(3, 10, seed=5), random(3, 64, seed=6))
    loss = build("at", pair_of_networks(), kind="flip symmetry")(student, teacher, batch_of(3))
    assert loss.item() == pytest.approx(naive_flip_symmetry(*gradients, reduction="mean").item())


@reductions
@pytest.mark.parametrize("kind", ["gradient", "flip symmetry"])
def test_the_students_weights_get_the_gradient_of_finite_differences(
    kind: str, reduction: str
) -> None:
    # Second order: the loss is of a gradient, and is differentiated by the weights.
    method = build("at", pair_of_networks(image_size=SMALL), kind=kind, reduction=reduction)
    backbone = build_backbone("resnet8", num_classes=10, in_channels=1, seed=3).double()
    images, batch = random(4, 1, *SMALL, seed=1), batch_of(4)
    nothing = random(4, 10, seed=2)
    teacher = Taps(nothing, nothing, input_gradient=random(4, 1, *SMALL, seed=3))

    def by_the_pixels(pixels: Tensor) -> Tensor:
        pixels = pixels.clone().requires_grad_()
        loss = cross_entropy(backbone(pixels), batch.labels, reduction="sum")
        return torch.autograd.grad(loss, pixels, create_graph=True)[0]

    def loss() -> Tensor:
        gradients = by_the_pixels(images), by_the_pixels(images.flip(3))
        return method(Taps(nothing, nothing, {}, {}, *gradients), teacher, batch)

    for weight in (backbone.get_submodule("conv1").weight, backbone.fc.weight):
        assert isinstance(weight, Tensor)
        (analytic,) = torch.autograd.grad(loss(), weight)
        entry, step = (1,) + (0,) * (weight.ndim - 1), 1e-6
        ends = []
        for change in (step, -2 * step):
            with torch.no_grad():
                weight[entry] += change
            ends.append(loss().item())
        with torch.no_grad():
            weight[entry] += step
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert analytic[entry].item() == pytest.approx(numeric, rel=1e-5, abs=1e-9)
        assert analytic.any()


# Training


@pytest.mark.parametrize(
    "params",
    [{"kind": "gradient"}, {"kind": "flip symmetry", "reduction": "paper", "weight": 10.0}],
    ids=str,
)
def test_it_learns_by_gradients_of_gradients(
    params: dict[str, Any],
    digits_config: DataConfig,
    teacher_config: TeacherConfig,
    workspace: Path,
    tmp_path: Path,
) -> None:
    # A step through two backward passes takes its time: a third of the images of other trials.
    few = digits_config.model_copy(update={"train_images": 128})
    ShortTrial("at", few, teacher_config, workspace, **params).assert_learns(tmp_path)
