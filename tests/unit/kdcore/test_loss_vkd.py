"""The orthogonal projector: the twins, what it keeps, hard embeddings, a short trial."""

from pathlib import Path

import pytest
import torch
from feature_methods import batch_of, build, pair_of_networks, random, taps_of
from logit_methods import ShortTrial
from torch import Tensor
from torch.autograd import gradcheck

from kdcore import DataConfig, TeacherConfig
from kdcore.methods.vkd import VKD, vkd_loss
from kdcore.operations.orthogonal import OrthogonalProjector, orthonormal_columns
from tests.twins.vkd import naive_orthonormal_columns, naive_vkd

every_size = pytest.mark.parametrize("size", [(5, 3), (8, 8), (6, 1), (1, 1)], ids=str)


@every_size
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 30.0])
def test_the_columns_are_orthonormal_and_their_twins(size: tuple[int, int], scale: float) -> None:
    weight = (scale * random(*size, seed=1)).requires_grad_()
    columns, naive = orthonormal_columns(weight), naive_orthonormal_columns(weight)
    assert torch.allclose(columns, naive, atol=1e-10)
    unit = torch.eye(size[1], dtype=torch.float64)
    assert torch.allclose(columns.T @ columns, unit, atol=1e-10)
    target = random(*size, seed=2)
    (ours,) = torch.autograd.grad((columns * target).sum(), weight)
    (theirs,) = torch.autograd.grad((naive * target).sum(), weight)
    assert torch.allclose(ours, theirs, atol=1e-9)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert gradcheck(orthonormal_columns, random(5, 3, seed=1).requires_grad_())
    projected, teacher = 2 * random(4, 3, seed=1), random(4, 3, seed=2)
    assert gradcheck(lambda value: vkd_loss(value, teacher), projected.requires_grad_())


@pytest.mark.parametrize("widths", [(16, 64), (64, 64), (64, 16)], ids=str)
def test_the_projector_keeps_what_fits_and_stays_so_while_it_learns(
    widths: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    projector = OrthogonalProjector(*widths)
    optimizer = torch.optim.SGD(projector.parameters(), lr=0.5, momentum=0.9)
    features, target = random(32, widths[0], seed=1).float(), random(32, widths[1], seed=2).float()
    before = projector.matrix().detach()
    losses = []
    for _ in range(20):
        loss = (projector(features) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    matrix = projector.matrix().detach()
    assert matrix.shape == widths[::-1]
    assert losses[-1] < losses[0]
    assert (matrix - before).norm() > 0.1
    smaller = matrix.T @ matrix if widths[0] <= widths[1] else matrix @ matrix.T
    assert torch.allclose(smaller, torch.eye(min(widths)), atol=1e-5)
    if widths[0] <= widths[1]:  # all products of features are kept
        projected = projector(features).detach()
        assert torch.allclose(projected @ projected.T, features @ features.T, atol=1e-3)


def test_the_first_projection_is_a_turn_in_many_directions() -> None:
    torch.manual_seed(0)
    matrix = OrthogonalProjector(64, 64).matrix().detach()
    # Near neither identity nor its negative.
    assert 0.02 < matrix.diagonal().abs().mean() < 0.9
    assert matrix.abs().max() < 0.999


@pytest.mark.parametrize("size", [(2, 3), (5, 9), (16, 2)], ids=str)
def test_the_loss_and_its_gradient_are_the_twins(size: tuple[int, int]) -> None:
    projected, teacher = (2 * random(*size, seed=1)).requires_grad_(), 3 + random(*size, seed=2)
    loss, naive = vkd_loss(projected, teacher), naive_vkd(projected, teacher)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, projected)
    (theirs,) = torch.autograd.grad(naive, projected)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


def test_level_and_scale_of_the_teachers_embedding_are_not_seen() -> None:
    projected, teacher = random(4, 16, seed=1), random(4, 16, seed=2)
    loss = vkd_loss(projected, teacher).item()
    assert vkd_loss(projected, 100 * teacher + 7).item() == pytest.approx(loss, rel=1e-4)
    centred = teacher - teacher.mean(1, keepdim=True)
    standardized = centred / centred.square().mean(1, keepdim=True).sqrt()
    assert vkd_loss(standardized, teacher).item() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_full(dtype: torch.dtype) -> None:
    projected, teacher = (300 * random(8, 4, seed=seed).to(dtype) for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = vkd_loss(projected, teacher)
    assert torch.equal(loss, vkd_loss(projected.float(), teacher.float()))


@pytest.mark.parametrize("pair", [("resnet8", "resnet50"), ("resnet50", "resnet8")], ids="-".join)
def test_the_method_projects_to_the_teachers_width(pair: tuple[str, str]) -> None:
    where = pair_of_networks(*pair)
    student, teacher = taps_of(where, 4)
    method = build("vkd", where).double()
    assert isinstance(method, VKD)
    projected = student.embedding @ method.projector.matrix().T
    expected = naive_vkd(projected, teacher.embedding)
    assert method(student, teacher, batch_of(4)).item() == pytest.approx(expected.item(), rel=1e-8)
    assert {name for name, _ in method.named_parameters()} == method.undecayed


def test_it_is_the_same_under_autocast() -> None:
    where = pair_of_networks()
    student, teacher = (taps.changed(Tensor.float) for taps in taps_of(where, 4))
    method = build("vkd", where)
    expected = method(student, teacher, batch_of(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method(student, teacher, batch_of(4)), expected)


def test_a_short_trial_learns(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    few = digits_config.model_copy(update={"train_images": 128})
    ShortTrial("vkd", few, teacher_config, workspace).assert_learns(tmp_path)
