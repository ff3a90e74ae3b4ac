"""CRD: its twins, the sampler, banks, queue and batch, short trials."""

import math
from dataclasses import replace
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
    watched,
)
from logit_methods import ShortTrial
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import normalize

from kdcore import DataConfig, TeacherConfig
from kdcore.contract.taps import Batch, Taps
from kdcore.methods.crd import (
    CRD,
    OtherClassSampler,
    UnitEmbedding,
    bank_scores,
    crd_loss,
    info_nce_loss,
    log_normalizer,
    nce_loss,
)
from tests.twins.crd import naive_crd, naive_info_nce, naive_log_normalizer


def _unit(rows: int, width: int, *, seed: int) -> Tensor:
    return normalize(random(rows, width, seed=seed), dim=1)


# The losses

# Images, width, rows of the bank, negatives; the third draws more than there are rows.
SIZES = [(1, 3, 5, 1), (5, 4, 20, 7), (4, 8, 12, 30), (8, 16, 50, 30)]


def _against_banks(images: int, width: int, rows: int, negatives: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    positions = torch.randint(rows, (images, 1 + negatives), generator=generator)
    return (
        _unit(images, width, seed=1).requires_grad_(),
        _unit(images, width, seed=2).requires_grad_(),
        _unit(rows, width, seed=3),
        _unit(rows, width, seed=4),
        positions,
        torch.tensor([4.0, 2.5], dtype=torch.float64),
    )


@pytest.mark.parametrize("temperature", [0.03, 0.07, 0.5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_loss_and_its_gradients_are_the_twins(
    size: tuple[int, int, int, int], temperature: float
) -> None:
    inputs = _against_banks(*size)
    loss = crd_loss(*inputs, temperature=temperature)
    naive = naive_crd(*inputs, temperature=temperature)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    for ours, theirs in zip(
        torch.autograd.grad(loss, inputs[:2]), torch.autograd.grad(naive, inputs[:2]), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_gradient_is_that_of_finite_differences(size: tuple[int, int, int, int]) -> None:
    student, teacher, *constants = _against_banks(*size)
    assert gradcheck(
        lambda ours, theirs: crd_loss(ours, theirs, *constants, temperature=0.3),
        (student, teacher),
    )


def test_every_row_that_is_drawn_twice_counts_twice() -> None:
    student, teacher, student_bank, teacher_bank, _, log_z = _against_banks(2, 4, 6, 1)
    positions = torch.tensor([[0, 3, 3, 3], [1, 5, 5, 2]])
    inputs = student, teacher, student_bank, teacher_bank, positions, log_z
    (ours,) = torch.autograd.grad(crd_loss(*inputs, temperature=0.2), student)
    (theirs,) = torch.autograd.grad(naive_crd(*inputs, temperature=0.2), student)
    assert torch.allclose(ours, theirs, rtol=1e-8)


def test_a_perfect_critic_costs_nothing_and_a_wrong_one_a_lot() -> None:
    east = torch.tensor([[1.0, 0.0]])
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    log_z = torch.zeros(2)
    right, wrong = torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
    assert crd_loss(east, east, bank, bank, right, log_z, temperature=0.05).item() < 1e-7
    # At either anchor log h(-20) = -20 and log(1 - h(20)) = -20, each off by log(K / N) = -0.7.
    loss = crd_loss(east, east, bank, bank, wrong, log_z, temperature=0.05)
    assert loss.item() == pytest.approx(2 * 2 * 20, rel=1e-5)


def test_scores_beyond_the_range_of_exp_stay_finite() -> None:
    # exp(1 / 0.005) = 7e86 is beyond float32, and exp(1 / 0.07) = 2e6 beyond float16.
    inputs = [
        value.detach().float() if value.is_floating_point() else value
        for value in _against_banks(8, 2, 50, 30)
    ]
    student = inputs[0].requires_grad_()
    loss = crd_loss(*inputs, temperature=0.005)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_no_tensor_is_larger_than_the_scores_of_the_whole_bank() -> None:
    student, teacher, *constants = _against_banks(8, 16, 50, 30)
    with watched() as watch:
        crd_loss(student, teacher, *constants, temperature=0.07).backward()
    assert watch.largest == 50 * 16  # the bank itself; B x K x D would be 3,840
    with watched() as watch:
        naive_crd(student, teacher, *constants, temperature=0.07)
    assert watch.largest == 8 * 31 * 16


def test_between_forward_and_backward_only_the_drawn_scores_are_kept() -> None:
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    inputs = _against_banks(8, 16, 5000, 30)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        crd_loss(*inputs, temperature=0.07)
    assert max(value.numel() for value in kept if value.shape != (5000, 16)) == 8 * 31


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_widened_before_anything_is_computed(dtype: torch.dtype) -> None:
    inputs = [
        value.detach().to(dtype) if value.is_floating_point() else value
        for value in _against_banks(5, 8, 20, 7)
    ]
    wide = [value.double() if value.is_floating_point() else value for value in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        loss = crd_loss(*inputs, temperature=0.07)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_crd(*wide, temperature=0.07).item(), rel=1e-4)


def test_a_backward_pass_under_autocast_is_as_exact() -> None:
    student, *others = [
        value.detach().float() if value.is_floating_point() else value
        for value in _against_banks(8, 16, 50, 30)
    ]
    student.requires_grad_()
    (plain,) = torch.autograd.grad(crd_loss(student, *others, temperature=0.07), student)
    with torch.autocast("cpu", torch.bfloat16):
        (cast,) = torch.autograd.grad(crd_loss(student, *others, temperature=0.07), student)
    assert torch.equal(plain, cast)


def test_the_normaliser_is_n_times_the_mean_exponential() -> None:
    student, _, _, bank, positions, _ = _against_banks(5, 8, 20, 7)
    scores = bank_scores(student, bank, positions, temperature=0.07)
    found = log_normalizer(scores, train_images=20)
    naive = naive_log_normalizer(student, bank, positions, temperature=0.07)
    assert found.item() == pytest.approx(naive.item(), rel=1e-10)
    assert not found.requires_grad
    strong = log_normalizer(torch.full((4, 9), 300.0), train_images=1000)
    assert strong.item() == pytest.approx(300 + math.log(1000), rel=1e-6)


# Images, others, classes.
@pytest.mark.parametrize("size", [(1, 4, 3), (5, 7, 2), (6, 3, 10)], ids=str)
def test_the_loss_of_queue_and_batch_is_its_twin(size: tuple[int, int, int]) -> None:
    images, others, classes = size
    embeddings = [
        _unit(rows, 8, seed=seed).requires_grad_()
        for seed, rows in enumerate((images, images, others, others))
    ]
    labels = torch.arange(images) % classes, torch.arange(others) % classes
    loss = info_nce_loss(*embeddings, *labels, temperature=0.2)
    naive = naive_info_nce(*embeddings, *labels, temperature=0.2)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-8)
    for ours, theirs in zip(
        torch.autograd.grad(loss, embeddings), torch.autograd.grad(naive, embeddings), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-12)
    assert gradcheck(lambda *rows: info_nce_loss(*rows, *labels, temperature=0.3), embeddings)


def test_others_of_the_same_class_are_no_negatives() -> None:
    student, teacher = _unit(2, 4, seed=1).requires_grad_(), _unit(2, 4, seed=2)
    labels, others = torch.tensor([3, 3]), torch.tensor([3, 5, 3])
    rows, moved = _unit(3, 4, seed=3), _unit(3, 4, seed=3)
    moved[[0, 2]] = _unit(2, 4, seed=4)
    losses = [
        info_nce_loss(student, teacher, other, other, labels, others, temperature=0.1)
        for other in (rows, moved)
    ]
    assert losses[0].item() == losses[1].item() > 0
    lonely = info_nce_loss(student, teacher, rows, rows, labels, others * 0 + 3, temperature=0.1)
    lonely.backward()
    assert abs(lonely.item()) <= 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() <= 1e-12


# The embedding


def test_embeddings_have_length_one_and_short_ones_a_bounded_gradient() -> None:
    embed = UnitEmbedding(6, 4)
    features = random(5, 6, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        embedded = embed(features.bfloat16())
    assert embedded.dtype == torch.float32
    assert embedded.norm(dim=1).tolist() == pytest.approx([1.0] * 5, rel=1e-6)
    torch.nn.init.zeros_(embed.bias)
    for scale in (0.0, 1e-20, 1e-8):
        dead = (features * scale).requires_grad_()
        embed(dead).sum().backward()
        assert dead.grad is not None
        # Dividing by a length of 1e-12 would multiply gradients by 1e12.
        assert dead.grad.abs().max() < 1e5


# The sampler


@pytest.mark.parametrize(
    "sizes", [(5, 5, 5), (1, 2, 17), (0, 3, 0, 4), (1, 1), (30, 1, 1)], ids=str
)
def test_every_image_of_another_class_is_drawn_equally_often(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels))]
    sampler = OtherClassSampler(labels, len(sizes))
    present = [number for number, size in enumerate(sizes) if size]
    anchors = torch.tensor(present)
    draws = sampler(anchors, 20_000)
    for row, own in zip(draws, present, strict=True):
        counts = torch.bincount(row, minlength=len(labels)).double()
        others = labels != own
        assert counts[~others].sum() == 0
        expected = 20_000 / int(others.sum())
        # 5 deviations of a binomial count.
        assert (counts[others] - expected).abs().max() <= 5 * math.sqrt(expected)


def test_draws_come_from_torchs_own_generator_and_differ_between_rows() -> None:
    sampler = OtherClassSampler(torch.arange(40) % 4, 4)
    labels = torch.tensor([1, 1, 2])
    torch.manual_seed(4)
    first, second = sampler(labels, 12), sampler(labels, 12)
    torch.manual_seed(4)
    assert torch.equal(sampler(labels, 12), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_images_of_one_class_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"all 6 training images have class 2.*two classes"):
        build("crd", pair_of_networks(train_labels=torch.full((6,), 2)))


# The method with banks


def _crd(**params: Any) -> CRD:
    """In float64, with the 40 training images of `pair_of_networks`."""
    method = build("crd", pair_of_networks(), **params).double()
    assert isinstance(method, CRD)
    return method


def _taps(images: int = 6) -> tuple[Taps, Taps]:
    return taps_of(pair_of_networks(), images)


def _embedded(method: CRD, student: Taps, teacher: Taps) -> tuple[Tensor, Tensor]:
    return (
        method.student_embedding(student.embedding).detach(),
        method.teacher_embedding(teacher.embedding).detach(),
    )


def _naive_term(method: CRD, batch: Batch, log_z: Tensor | None) -> float:
    """Of `_taps`, with the negatives that the method is about to draw, or those of the seed."""
    ours, theirs = _embedded(method, *_taps())
    torch.manual_seed(1)
    drawn = method.sampler(batch.labels, method.negative_images)
    positions = torch.cat([batch.indices[:, None], drawn], dim=1)
    banks = method.student_memory, method.teacher_memory
    temperature = method.params.temperature
    if log_z is None:
        log_z = torch.stack(
            [
                naive_log_normalizer(ours, banks[1], positions, temperature=temperature),
                naive_log_normalizer(theirs, banks[0], positions, temperature=temperature),
            ]
        )
    loss = naive_crd(ours, theirs, *banks, positions, log_z, temperature=temperature)
    return loss.item()


def test_the_first_batch_gives_the_normalisers_and_later_ones_use_them() -> None:
    method, batch = _crd(), batch_of(6)
    expected = _naive_term(method, batch, None)
    torch.manual_seed(1)
    assert method(*_taps(), batch).item() == pytest.approx(expected, rel=1e-8)
    method.after_step()
    frozen = method.log_normalizers.clone()
    assert frozen.isfinite().all()
    later = replace(batch, indices=batch.indices + 1, labels=(batch.indices + 1) % 10)
    expected = _naive_term(method, later, frozen)
    torch.manual_seed(1)
    assert method(*_taps(), later).item() == pytest.approx(expected, rel=1e-8)
    method.after_step()
    assert torch.equal(method.log_normalizers, frozen)


def test_a_running_mean_of_the_normalisers_moves_by_a_hundredth() -> None:
    method, batch = _crd(normalizer="running mean"), batch_of(6)
    method(*_taps(), batch)
    method.after_step()
    first = method.log_normalizers.clone()
    scores = []
    for anchor, bank in zip(
        _embedded(method, *_taps()), (method.teacher_memory, method.student_memory), strict=True
    ):
        torch.manual_seed(1)
        drawn = method.sampler(batch.labels, method.negative_images)
        positions = torch.cat([batch.indices[:, None], drawn], dim=1)
        scores.append(bank_scores(anchor, bank, positions, temperature=0.07))
    found = torch.stack([log_normalizer(value, train_images=40) for value in scores])
    mean = (0.99 * first.exp() + 0.01 * found.exp()).log()
    torch.manual_seed(1)
    loss = method(*_taps(), batch)
    expected = sum(
        nce_loss(value, log_z, train_images=40).item()
        for value, log_z in zip(scores, mean, strict=True)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-8)
    method.after_step()
    assert torch.allclose(method.log_normalizers, mean, rtol=1e-10)


def test_a_loss_without_a_step_changes_no_state() -> None:
    for negatives in ("bank", "queue", "batch"):
        method = _crd(negatives=negatives)
        before = {name: value.clone() for name, value in method.state_dict().items()}
        method(*_taps(), batch_of(6)).backward()
        assert all(torch.equal(method.state_dict()[name], before[name]) for name in before)
        method.after_step()
        method.after_step()  # a second step without a loss between


def test_a_step_mixes_the_batchs_rows_into_the_banks_and_touches_no_other() -> None:
    method, batch = _crd(momentum=0.3), batch_of(6)
    before = method.student_memory.clone(), method.teacher_memory.clone()
    embedded = _embedded(method, *_taps())
    method(*_taps(), batch).backward()
    method.after_step()
    for bank, old, rows in zip(
        (method.student_memory, method.teacher_memory), before, embedded, strict=True
    ):
        for row, index in zip(rows, batch.indices.tolist(), strict=True):
            mixed = 0.3 * old[index] + 0.7 * row
            assert torch.allclose(bank[index], mixed / mixed.norm(), rtol=1e-10)
        rest = torch.ones(len(bank), dtype=torch.bool)
        rest[batch.indices] = False
        assert torch.equal(bank[rest], old[rest])
        assert not bank.requires_grad


def test_of_an_image_that_is_twice_in_a_batch_the_last_embedding_counts() -> None:
    method = _crd(momentum=0.0)
    indices = torch.tensor([4, 7, 4, 9, 7, 4])
    embedded = _embedded(method, *_taps())
    method(*_taps(), Batch(indices % 10, indices, 1, 1))
    method.after_step()
    for index, last in ((4, 5), (7, 4), (9, 3)):
        assert torch.allclose(method.student_memory[index], embedded[0][last], rtol=1e-10)
        assert torch.allclose(method.teacher_memory[index], embedded[1][last], rtol=1e-10)


def test_another_object_goes_on_from_the_state_dict_with_the_same_bits() -> None:
    for params in (
        {"negatives": "bank"},
        {"negatives": "bank", "normalizer": "running mean"},
        {"negatives": "queue", "negative_images": 10},
    ):
        method, batch = _crd(**params), batch_of(6)
        method(*_taps(), batch)
        method.after_step()
        torch.manual_seed(9)
        other = CRD(CRD.Params.model_validate(params), pair_of_networks()).double()
        other.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
        for _ in range(2):
            losses = []
            for each in (method, other):
                torch.manual_seed(2)
                losses.append(each(*_taps(), batch).item())
                each.after_step()
            assert losses[0] == losses[1]
        states = method.state_dict(), other.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_checkpoint_holds_banks_and_normalisers_but_not_what_the_data_say() -> None:
    names = {name for name in _crd().state_dict() if "embedding" not in name}
    assert names == {"student_memory", "teacher_memory", "log_normalizers"}
    names = {name for name in _crd(negatives="queue").state_dict() if "embedding" not in name}
    assert names == {"student_memory", "teacher_memory", "memory_labels", "next_entry"}
    assert all("embedding" in name for name in _crd(negatives="batch").state_dict())


def test_negatives_are_capped_by_what_the_training_images_allow() -> None:
    assert _crd().negative_images == 40 - 4
    assert _crd(negative_images=8).negative_images == 8
    skewed = torch.tensor([0] * 30 + [1] * 9 + [2])
    assert build("crd", pair_of_networks(train_labels=skewed)).negative_images == 10
    assert _crd(negatives="queue").negative_images == 40


def test_banks_have_a_row_for_each_training_image() -> None:
    method = build("crd", pair_of_networks(train_labels=torch.arange(55) % 10), width=64)
    assert isinstance(method, CRD)
    for bank in (method.student_memory, method.teacher_memory):
        assert bank.shape == (55, 64)
        assert bank.norm(dim=1).tolist() == pytest.approx([1.0] * 55, rel=1e-5)
    assert not torch.equal(method.student_memory, method.teacher_memory)


# The method with a queue, and with the batch alone


def test_a_queue_keeps_the_latest_embeddings_and_their_classes() -> None:
    method = _crd(negatives="queue", negative_images=10)
    student, teacher = _taps(4)
    expected: list[tuple[int, Tensor, Tensor]] = []
    assert (method.memory_labels == -1).all()
    for step in range(4):
        indices = torch.arange(4) + 4 * step
        scale = random(64, seed=step).abs()
        shown = replace(student, embedding=student.embedding * scale)
        taught = replace(teacher, embedding=teacher.embedding * scale)
        ours, theirs = _embedded(method, shown, taught)
        method(shown, taught, Batch(indices % 10, indices, 1, 1))
        method.after_step()
        expected += zip((indices % 10).tolist(), ours, theirs, strict=True)
    # 16 entries went into 10 places: the last six lie in front, the four before behind them.
    order = [*expected[10:], *expected[6:10]]
    assert method.memory_labels.tolist() == [label for label, _, _ in order]
    assert torch.equal(method.student_memory, torch.stack([row for _, row, _ in order]))
    assert torch.equal(method.teacher_memory, torch.stack([row for _, _, row in order]))
    assert method.next_entry.item() == 6


def test_a_queue_shorter_than_a_batch_keeps_the_batchs_last() -> None:
    method = _crd(negatives="queue", negative_images=4)
    ours, _ = _embedded(method, *_taps())
    method(*_taps(), batch_of(6))
    method.after_step()
    assert torch.equal(method.student_memory, ours[-4:])
    assert method.memory_labels.tolist() == batch_of(6).labels[-4:].tolist()


def test_the_terms_of_queue_and_batch_are_the_twins() -> None:
    batch = batch_of(6)
    queued = _crd(negatives="queue", negative_images=10)
    for _ in range(2):
        ours, theirs = _embedded(queued, *_taps())
        expected = naive_info_nce(
            ours,
            theirs,
            queued.student_memory,
            queued.teacher_memory,
            batch.labels,
            queued.memory_labels,
            temperature=0.07,
        )
        found = queued(*_taps(), batch)
        assert found.item() == pytest.approx(expected.item(), rel=1e-8)
        queued.after_step()
    alone = _crd(negatives="batch")
    ours, theirs = _embedded(alone, *_taps())
    classes = batch.labels, batch.labels
    expected = naive_info_nce(ours, theirs, ours, theirs, *classes, temperature=0.07)
    assert alone(*_taps(), batch).item() == pytest.approx(expected.item(), rel=1e-8)


# Training


def test_it_learns(teacher_config: TeacherConfig, workspace: Path, tmp_path: Path) -> None:
    # In the first epoch the banks hold random directions, which nothing can be told from: what
    # there is to learn shows from the second on. So all digits, three times the images of other
    # trials.
    digits = DataConfig(name="digits", heldout_fraction=0.2)
    teacher = teacher_config.model_copy(update={"backbone": "resnet8"})
    ShortTrial("crd", digits, teacher, workspace).assert_learns(tmp_path)
