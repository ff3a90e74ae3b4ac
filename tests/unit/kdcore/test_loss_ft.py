"""Factors: the twins, what scale and pooling change, the paraphraser's life, short trials."""

from pathlib import Path
from typing import Any

import pytest
import torch
from feature_methods import (
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
from kdcore.backbones.catalogue import build_backbone
from kdcore.methods.ft import FT, ft_loss, reconstruction_loss
from kdcore.training.checkpoint import read_checkpoint
from tests.twins.ft import naive_ft, naive_reconstruction

# Of the images: some maps of the deepest network are then one pixel.
SMALL = (8, 12)

FACTOR_SIZES = [
    ((2, 3, 4, 4), (2, 3, 4, 4)),
    ((1, 4, 8, 6), (1, 4, 4, 3)),
    ((3, 2, 3, 8), (3, 2, 6, 4)),
]

forms = pytest.mark.parametrize("form", ["factor", "attention"])


# The losses


@forms
@pytest.mark.parametrize(("student_size", "teacher_size"), FACTOR_SIZES)
def test_the_loss_is_its_twin(
    student_size: tuple[int, ...], teacher_size: tuple[int, ...], form: Any
) -> None:
    student, teacher = random(*student_size, seed=1), random(*teacher_size, seed=2)
    expected = naive_ft(student, teacher, form=form).item()
    assert ft_loss(student, teacher, form=form).item() == pytest.approx(expected, rel=1e-8)
    assert gradcheck(lambda shown: ft_loss(shown, teacher, form=form), student.requires_grad_())


@forms
def test_it_is_zero_for_factors_equal_up_to_a_factor_of_each_image(form: Any) -> None:
    factor = random(3, 4, 5, 2, seed=1)
    scales = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)[:, None, None, None]
    assert ft_loss(factor * scales, factor, form=form).item() == pytest.approx(0, abs=1e-14)


def test_attention_forgets_which_channel_is_active_and_the_factor_does_not() -> None:
    factor = random(2, 6, 3, 3, seed=1)
    shuffled = factor.roll(1, dims=1)
    attention = ft_loss(shuffled, factor, form="attention")
    assert attention.item() == pytest.approx(0, abs=1e-14)
    assert ft_loss(shuffled, factor, form="factor").item() > 1e-3


@forms
def test_factors_are_pooled_before_their_length_is_taken(form: Any) -> None:
    student, teacher = random(2, 3, 4, 4, seed=1), random(2, 3, 2, 2, seed=2)
    pooled = ft_loss(adaptive_avg_pool2d(student, (2, 2)), teacher, form=form)
    assert ft_loss(student, teacher, form=form).item() == pytest.approx(pooled.item(), rel=1e-12)


@pytest.mark.parametrize("size", [(2, 3, 4, 4), (1, 5, 6, 3)])
def test_the_reconstruction_is_its_twin(size: tuple[int, ...]) -> None:
    reconstructed, teacher = random(*size, seed=1), random(*size, seed=2)
    expected = naive_reconstruction(reconstructed, teacher).item()
    assert reconstruction_loss(reconstructed, teacher).item() == pytest.approx(expected, rel=1e-8)
    assert gradcheck(reconstruction_loss, (reconstructed.requires_grad_(), teacher))


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_a_reconstruction_is_judged_by_the_strength_of_the_map(scale: float) -> None:
    teacher = scale * random(2, 3, 4, 4, seed=1)
    assert reconstruction_loss(teacher.clone(), teacher).item() == 0
    assert reconstruction_loss(torch.zeros_like(teacher), teacher).item() == pytest.approx(1)
    assert reconstruction_loss(teacher / 2, teacher).item() == pytest.approx(0.25)


def test_a_dead_map_can_be_reconstructed() -> None:
    guess = random(2, 3, 4, 4, seed=1).float().requires_grad_()
    loss = reconstruction_loss(guess, torch.zeros(2, 3, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert guess.grad is not None
    assert guess.grad.isfinite().all()


@forms
def test_zero_factors_give_a_moderate_gradient(form: Any) -> None:
    # Dividing by a smallest length of 1e-12 would make it 1e12.
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    ft_loss(dead, random(2, 3, 4, 4, seed=1).float(), form=form).backward()
    assert dead.grad is not None
    assert dead.grad.abs().max() <= 1


# The method


@pytest.mark.parametrize(("rate", "channels"), [(0.25, 16), (0.5, 32), (1.0, 64), (1e-4, 1)])
def test_a_factor_has_a_share_of_the_teachers_channels(rate: float, channels: int) -> None:
    method = build("ft", pair_of_networks("resnet8x4", "resnet14"), rate=rate)
    assert isinstance(method, FT)
    factor = method.paraphrasers[0].encoder(torch.zeros(2, 64, 4, 6))
    translated = method.translators[0](torch.zeros(2, 256, 4, 6))
    assert factor.shape == translated.shape == (2, channels, 4, 6)


@forms
@pytest.mark.parametrize("layers", ["last", "all", "stem:stage2"])
def test_it_compares_what_paraphraser_and_translator_say(layers: str, form: str) -> None:
    where = pair_of_networks("resnet8", "resnet8x4", image_size=SMALL)
    method = build("ft", where, layers=layers, form=form).double()
    assert isinstance(method, FT)
    student, teacher = taps_of(where, 2)
    expected = sum(
        naive_ft(
            translator(student.maps[pair.student]),
            paraphraser.encoder(teacher.maps[pair.teacher]),
            form=form,
        ).item()
        for pair, paraphraser, translator in zip(
            method.pairs, method.paraphrasers, method.translators, strict=True
        )
    )
    assert method(student, teacher, batch_of(2)).item() == pytest.approx(expected, rel=1e-8)


def test_the_paraphraser_prepares_and_the_translator_follows() -> None:
    where = pair_of_networks("resnet8", "resnet8x4")
    method = build("ft", where)
    assert isinstance(method, FT)
    assert method.preparation_epochs(240) == 30
    taps = (taps.changed(Tensor.float) for taps in taps_of(where, 3))
    student, teacher = (leaves(value) for value in taps)
    for epoch, preparing in ((1, True), (30, True), (31, False), (240, False)):
        method.begin_epoch(epoch, 240)
        assert all(part.training == preparing for part in method.paraphrasers.modules())
        assert method.translators.training
        method.zero_grad()
        method(student, teacher, batch_of(3, epoch=epoch, epochs=240)).backward()
        for parameter in method.paraphrasers.parameters():
            assert (parameter.grad is not None) == parameter.requires_grad == preparing
        for parameter in method.translators.parameters():
            assert (parameter.grad is None) == preparing
        assert (student.maps["stage3"].grad is None) == preparing
    assert all(value.grad is None for value in teacher.maps.values())


def test_no_gradient_reaches_the_paraphraser_even_where_no_epoch_has_begun() -> None:
    where = pair_of_networks()
    method = build("ft", where)
    assert isinstance(method, FT)
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 3))
    method(student, teacher, batch_of(3)).backward()
    assert all(parameter.grad is None for parameter in method.paraphrasers.parameters())


# Training


def test_it_learns_to_paraphrase(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    trial = ShortTrial("ft", digits_config, teacher_config, workspace, preparation_share=0.6)
    first, second, _ = (report.train_terms["ft"] for report in trial.reports(tmp_path))
    assert second < first


def test_while_it_prepares_the_student_waits_and_then_the_paraphraser_stays(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    trial = ShortTrial("ft", digits_config, teacher_config, workspace)
    helpers = []
    for epoch in (1, 2):
        assert trial.reports(tmp_path, 1)[0].epoch == epoch
        helpers.append(trial.helpers(tmp_path))
        if epoch == 1:
            state = read_checkpoint(tmp_path, torch.device("cpu"))
            assert state is not None
            # Not even weight decay touches it.
            untrained = build_backbone("resnet8", num_classes=10, in_channels=1, seed=0)
            for name, weight in untrained.named_parameters():
                assert torch.equal(state["student"][name], weight)
    for name, value in helpers[0].items():
        assert torch.equal(value, helpers[1][name]) == name.startswith("paraphrasers"), name
