"""Relational distillation: the twin with B x B x D, equal rows, large batches."""

import math
from functools import cache

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
from torch import Tensor
from torch.autograd import gradcheck

from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Taps
from kdcore.methods import rkd
from kdcore.methods.rkd import rkd_loss
from tests.twins.rkd import naive_rkd

PUBLISHED = {"distance_weight": 25.0, "angle_weight": 50.0}

WEIGHTS = [
    {"distance_weight": 1.0, "angle_weight": 0.0},
    {"distance_weight": 0.0, "angle_weight": 1.0},
    PUBLISHED,
]

every_weight = pytest.mark.parametrize("weights", WEIGHTS, ids=str)


def _two_equal_rows(rows: Tensor) -> Tensor:
    return torch.cat([rows[:1], rows[:1], rows[2:]])


EMBEDDINGS = {
    "two images": (random(2, 3, seed=1), random(2, 5, seed=2)),
    "ordinary": (random(5, 4, seed=1), random(5, 4, seed=2)),
    "wider teacher": (random(7, 3, seed=1), 10 * random(7, 12, seed=2)),
    "narrower teacher": (random(7, 12, seed=1), random(7, 3, seed=2)),
    "two equal teachers": (random(6, 4, seed=1), _two_equal_rows(random(6, 5, seed=2))),
    # One far point, so that some differences are beyond the Huber loss's corner.
    "far point": (
        random(6, 4, seed=1) + 30 * torch.eye(6, 4, dtype=torch.float64)[[0, 5, 5, 5, 5, 5]],
        random(6, 5, seed=2),
    ),
    "far from the origin": (random(5, 4, seed=1) + 100, random(5, 4, seed=2) - 50),
}


@cache
def small(student: str, teacher: str) -> tuple[NetworkPair, Taps, Taps]:
    """Two networks on small images, and float32 outputs of both for six of them."""
    where = pair_of_networks(student, teacher, image_size=(8, 12))
    ours, theirs = (taps.changed(Tensor.float) for taps in taps_of(where, 6))
    return where, ours, theirs


@every_weight
@pytest.mark.parametrize("case", EMBEDDINGS)
def test_the_loss_and_its_gradient_are_the_twins(case: str, weights: dict[str, float]) -> None:
    student, teacher = EMBEDDINGS[case]
    student = student.clone().requires_grad_()
    loss, naive = rkd_loss(student, teacher, **weights), naive_rkd(student, teacher, **weights)
    # Two points know one distance and no angle: both sides are then nought but for rounding.
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8, abs=1e-14)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-9)


@every_weight
def test_two_equal_students_have_the_twins_loss(weights: dict[str, float]) -> None:
    # The twin's gradient is worthless here: 1e11.
    student, teacher = _two_equal_rows(random(6, 4, seed=1)), random(6, 5, seed=2)
    naive = naive_rkd(student, teacher, **weights).item()
    assert rkd_loss(student, teacher, **weights).item() == pytest.approx(naive, rel=1e-8)


def test_the_twin_is_the_papers_equations() -> None:
    student, teacher = random(4, 3, seed=1), random(4, 2, seed=2)
    images = range(4)

    def huber(difference: float) -> float:
        return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5

    def cosine(rows: list[list[float]], i: int, j: int, k: int) -> float:
        to_i, to_k = ([a - b for a, b in zip(rows[end], rows[j], strict=True)] for end in (i, k))
        lengths = math.hypot(*to_i) * math.hypot(*to_k)
        return sum(a * b for a, b in zip(to_i, to_k, strict=True)) / lengths if lengths else 0.0

    def distances(rows: list[list[float]]) -> list[float]:
        all_of_them = [math.dist(a, b) for a in rows for b in rows]
        mean = sum(all_of_them) / (4 * 3)
        return [distance / mean for distance in all_of_them]

    s, t = student.tolist(), teacher.tolist()
    distance = sum(huber(a - b) for a, b in zip(distances(s), distances(t), strict=True)) / 4**2
    angle = sum(
        huber(cosine(s, i, j, k) - cosine(t, i, j, k))
        for i in images
        for j in images
        for k in images
    )
    expected = 25 * distance + 50 * angle / 4**3
    assert naive_rkd(student, teacher, **PUBLISHED).item() == pytest.approx(expected)


@every_weight
def test_the_gradient_is_that_of_finite_differences(weights: dict[str, float]) -> None:
    student, teacher = random(5, 3, seed=11).requires_grad_(), random(5, 4, seed=12)
    assert gradcheck(lambda value: rkd_loss(value, teacher, **weights), student)


@pytest.mark.parametrize("equal", [2, 3, 8])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_equal_rows_have_moderate_gradients(equal: int, offset: float) -> None:
    # Normalising a zero difference the usual way gives gradients of 1e11.
    student = random(8, 16, seed=1).float() + offset
    student[:equal] = student[0]
    student.requires_grad_()
    rkd_loss(student, random(8, 32, seed=2).float(), **PUBLISHED).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10


def test_digits_are_kept_far_from_the_origin() -> None:
    # |a|^2 + |b|^2 - 2ab without centring has an error of 593 percent here.
    student = (100 + 0.01 * random(8, 32, seed=1)).float()
    teacher = (100 + 0.01 * random(8, 64, seed=2)).float()
    centred = rkd_loss(
        student.double() - student.double().mean(0),
        teacher.double() - teacher.double().mean(0),
        **PUBLISHED,
    )
    loss = rkd_loss(student, teacher, **PUBLISHED)
    assert loss.item() == pytest.approx(centred.item(), rel=1e-3)


def test_shift_rotation_and_scale_change_nothing() -> None:
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    rotation = torch.linalg.qr(random(4, 4, seed=3)).Q
    moved = rkd_loss(7 * student @ rotation + 3, teacher, **PUBLISHED)
    assert moved.item() == pytest.approx(rkd_loss(student, teacher, **PUBLISHED).item(), rel=1e-8)
    assert abs(rkd_loss(7 * student @ rotation + 3, student, **PUBLISHED).item()) <= 1e-10


def test_a_batch_of_one_is_zero_and_has_a_gradient() -> None:
    student = random(1, 4, seed=1).requires_grad_()
    loss = rkd_loss(student, random(1, 6, seed=2), **PUBLISHED)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("at_once", [1, 12 * 12 - 1, 5 * 12 * 12, 11 * 12 * 12])
def test_a_large_batch_is_taken_part_by_part_with_the_same_result(
    at_once: int, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = random(12, 4, seed=1).requires_grad_(), random(12, 6, seed=2)
    whole = rkd_loss(student, teacher, **PUBLISHED)
    (expected,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(rkd, "_ANGLES_AT_ONCE", at_once)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        parts = rkd_loss(student, teacher, **PUBLISHED)
    (gradient,) = torch.autograd.grad(parts, student)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-14)


def test_no_tensor_of_all_differences_or_of_a_large_batchs_angles_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, teacher = random(24, 600, seed=1).requires_grad_(), random(24, 600, seed=2)
    with watched() as watch:
        rkd_loss(student, teacher, **PUBLISHED).backward()
    assert watch.largest == max(24**3, 24 * 600)
    monkeypatch.setattr(rkd, "_ANGLES_AT_ONCE", 5 * 24**2)
    student, teacher = random(24, 8, seed=1).requires_grad_(), random(24, 8, seed=2)
    with watched() as watch:
        rkd_loss(student, teacher, **PUBLISHED).backward()
    assert watch.largest == 5 * 24**2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_full(dtype: torch.dtype) -> None:
    student, teacher = random(6, 8, seed=1).to(dtype), random(6, 16, seed=2).to(dtype)
    expected = rkd_loss(student.float(), teacher.float(), **PUBLISHED)
    with torch.autocast("cpu", torch.bfloat16):
        loss = rkd_loss(student, teacher, **PUBLISHED)
    assert torch.equal(loss, expected)


def test_the_method_weighs_angles_by_their_ratio_to_distances() -> None:
    where = pair_of_networks("resnet8", "resnet50", image_size=(8, 12))
    student, teacher = taps_of(where, 4)
    method = build("rkd", where, distance_weight=3.0, angle_ratio=0.5)
    expected = naive_rkd(
        student.embedding, teacher.embedding, distance_weight=3.0, angle_weight=1.5
    )
    assert method(student, teacher, batch_of(4)).item() == pytest.approx(expected.item(), rel=1e-8)
