"""ReviewKD: pyramid and fusion against their twins, shapes, the warm-up."""

import pytest
import torch
from feature_methods import (
    PAIRS,
    batch_of,
    build,
    pair_of_networks,
    random,
    taps_of,
)
from torch.autograd import gradcheck

from kdcore.contract.layer_pairs import equal_depth_pairs
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Taps
from kdcore.methods.reviewkd import Fusion, ReviewKD, resized, reviewkd_loss
from tests.twins.reviewkd import naive_fusion, naive_resized, naive_reviewkd

SIZES = [
    (2, 3, 8, 8),
    (1, 2, 4, 4),
    (3, 2, 7, 5),
    (2, 4, 1, 1),
    (2, 3, 2, 6),
    (2, 2, 3, 16),
    (1, 5, 1, 3),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_loss_and_its_gradient_are_the_twins(size: tuple[int, ...]) -> None:
    fused, teacher = random(*size, seed=1).requires_grad_(), random(*size, seed=2)
    loss, naive = reviewkd_loss(fused, teacher), naive_reviewkd(fused, teacher)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    (ours,) = torch.autograd.grad(loss, fused)
    (theirs,) = torch.autograd.grad(naive, fused)
    assert torch.allclose(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_gradient_is_that_of_finite_differences(size: tuple[int, ...]) -> None:
    both = random(*size, seed=1).requires_grad_(), random(*size, seed=2).requires_grad_()
    assert gradcheck(reviewkd_loss, both)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_loss_is_zero_at_equality_and_an_even_shift_counts_its_square(
    size: tuple[int, ...],
) -> None:
    # Every level sees the same shift, so that the weights must sum to 1.
    teacher = random(*size, seed=1)
    assert reviewkd_loss(teacher.clone(), teacher).item() == 0
    assert reviewkd_loss(teacher + 3, teacher).item() == pytest.approx(9, rel=1e-10)


def test_levels_as_large_as_the_map_are_left_out() -> None:
    # A checkerboard's means are 0 on every smaller level: the map's own share remains.
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    shares = {2: 1 + 1 / 2, 4: 1 + 1 / 2 + 1 / 4, 8: 1 + 1 / 2 + 1 / 4 + 1 / 8}
    for side, weights in shares.items():
        fused = board.repeat(side // 2, side // 2)[None, None]
        loss = reviewkd_loss(fused, torch.zeros_like(fused))
        assert loss.item() == pytest.approx(1 / weights, rel=1e-6)


@pytest.mark.parametrize("before", [(4, 4), (3, 8), (1, 1), (7, 5)])
@pytest.mark.parametrize("after", [(4, 4), (8, 3), (1, 1), (2, 12)])
def test_maps_are_averaged_where_too_large_and_repeated_where_too_small(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    feature_map = random(2, 3, *before, seed=1)
    found = resized(feature_map, after)
    assert found.shape == (2, 3, *after)
    assert torch.allclose(found, naive_resized(feature_map, *after), rtol=1e-10)


# Fusion


@pytest.mark.parametrize("deepest", [True, False])
@pytest.mark.parametrize("size", [(4, 6), (8, 8), (2, 3), (2, 12)])
def test_a_fusion_is_its_twin(size: tuple[int, int], deepest: bool) -> None:
    torch.manual_seed(0)
    fusion = Fusion(3, 7, 5, deepest=deepest).double()
    with torch.no_grad():
        for number, parameter in enumerate(fusion.parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=number))
    student_map = random(4, 3, 4, 6, seed=20)
    deeper = None if deepest else random(4, 5, 2, 3, seed=21)
    compared, passed_on = fusion(student_map, deeper, size)
    weights = dict(fusion.named_parameters())
    expected, expected_on = naive_fusion(student_map, deeper, size, weights)
    assert compared.shape == (4, 7, *size)
    assert passed_on.shape == (4, 5, *size)
    assert torch.allclose(compared, expected, rtol=1e-8)
    assert torch.allclose(passed_on, expected_on, rtol=1e-8)


# The method


def _naive_term(method: ReviewKD, where: NetworkPair, student: Taps, teacher: Taps) -> float:
    """From the embedding to the first stage, every fusion's loss."""
    pairs = equal_depth_pairs(where.student, where.teacher)
    levels = [(student.preactivations[p.student], teacher.preactivations[p.teacher]) for p in pairs]
    levels.append((student.embedding[..., None, None], teacher.embedding[..., None, None]))
    deeper, total = None, 0.0
    for fusion, (ours, theirs) in zip(method.fusions, levels[::-1], strict=True):
        size = (theirs.shape[2], theirs.shape[3])
        compared, deeper = naive_fusion(ours, deeper, size, dict(fusion.named_parameters()))
        total += naive_reviewkd(compared, theirs).item()
    return total


@pytest.mark.parametrize("pair", [*PAIRS[:2], ("resnet8x4", "resnet8")], ids="-".join)
def test_the_term_reviews_all_stages_from_the_deepest(pair: tuple[str, str]) -> None:
    where = pair_of_networks(*pair)
    method = build("reviewkd", where, max_width=16).double()
    assert isinstance(method, ReviewKD)
    student, teacher = taps_of(where, 3)
    expected = _naive_term(method, where, student, teacher)
    assert method(student, teacher, batch_of(3)).item() == pytest.approx(expected, rel=1e-8)


def test_shapes_follow_from_the_networks() -> None:
    for pair, stages in ((PAIRS[0], 3), (PAIRS[1], 3), (PAIRS[2], 3), (("resnet50",) * 2, 4)):
        where = pair_of_networks(*pair)
        method = build("reviewkd", where)
        assert isinstance(method, ReviewKD)
        assert len(method.fusions) == stages + 1
        widths = {fusion.reduce[0].out_channels for fusion in method.fusions}
        assert widths == {min(512, where.student.embedding_width)}
        assert method.fusions[0].expand[0].out_channels == where.teacher.embedding_width
        assert method.fusions[0].attention is None
        assert all(fusion.attention is not None for fusion in list(method.fusions)[1:])


def test_the_deepest_stage_reaches_the_shallowest_comparison() -> None:
    # The connection across stages: what makes it a review.
    where = pair_of_networks()
    method = build("reviewkd", where).double()
    assert isinstance(method, ReviewKD)
    student, _ = taps_of(where, 3)
    embedding = student.embedding.clone().requires_grad_()
    shown = [student.preactivations[stage] for stage in where.student.stages]
    levels = [embedding[..., None, None], *reversed(shown)]
    deeper = None
    for fusion, level in zip(method.fusions, levels, strict=True):
        compared, deeper = fusion(level, deeper, (level.shape[2], level.shape[3]))
    compared.square().sum().backward()
    assert embedding.grad is not None
    assert embedding.grad.any()


def test_the_term_rises_over_the_warm_up() -> None:
    where = pair_of_networks()
    method = build("reviewkd", where, warmup_share=0.25).double()
    student, teacher = taps_of(where, 3)
    terms = [
        method(student, teacher, batch_of(3, epoch=epoch, epochs=16)).item()
        for epoch in (1, 2, 4, 5, 16)
    ]
    full = terms[-1]
    assert terms == pytest.approx([full / 4, full / 2, full, full, full], rel=1e-10)


def test_the_published_warm_up_is_20_of_240_epochs() -> None:
    where = pair_of_networks()
    method = build("reviewkd", where).double()
    student, teacher = taps_of(where, 2)
    full = method(student, teacher, batch_of(2, epoch=20, epochs=240)).item()
    first = method(student, teacher, batch_of(2, epoch=1, epochs=240)).item()
    assert method(student, teacher, batch_of(2, epoch=240, epochs=240)).item() == full
    assert first == pytest.approx(full / 20, rel=1e-10)
