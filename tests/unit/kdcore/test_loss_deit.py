"""DeiT's distillation: both twins, the token's own head, what it does without one."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from logit_methods import (
    SIZES,
    assert_computes_halves_in_full,
    assert_no_gradient_for_the_teacher,
    assert_sound,
    build,
    pair_of_networks,
    random_logits,
    term,
)
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.methods.deit import DeiT, deit_loss
from kdcore.methods.kd import kd_loss
from tests.twins.deit import naive_deit

NAME = "timm/deit_tiny_distilled_patch16_224"
both_kinds = pytest.mark.parametrize("kind", ["hard", "soft"])


@both_kinds
@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_the_loss_is_its_twin(images: int, classes: int, kind: str) -> None:
    student, teacher = (random_logits(images, classes, seed=seed) for seed in (1, 2))
    for temperature in (1.0, 3.0):
        loss = deit_loss(student, teacher, kind=kind, temperature=temperature)
        expected = naive_deit(student, teacher, kind=kind, temperature=temperature)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


@both_kinds
def test_the_gradient_is_that_of_finite_differences_and_of_the_twin(kind: str) -> None:
    student, teacher = random_logits(3, 5, seed=1).requires_grad_(), random_logits(3, 5, seed=2)

    def loss(logits: Tensor) -> Tensor:
        return deit_loss(logits, teacher, kind=kind, temperature=3.0)

    assert gradcheck(loss, student)
    (ours,) = torch.autograd.grad(loss(student), student)
    naive = naive_deit(student, teacher, kind=kind, temperature=3.0)
    assert torch.allclose(ours, torch.autograd.grad(naive, student)[0], rtol=1e-8, atol=1e-12)


def test_soft_is_kd_and_hard_knows_nothing_but_the_decision() -> None:
    student, teacher = random_logits(4, 6, seed=1), random_logits(4, 6, seed=2)
    soft = deit_loss(student, teacher, kind="soft", temperature=3.0)
    assert torch.equal(soft, kd_loss(student, teacher, temperature=3.0))
    hard = [deit_loss(student, t, kind="hard", temperature=3.0) for t in (teacher, 5 * teacher)]
    assert torch.equal(*hard)


@both_kinds
def test_hard_logits_and_halves(kind: str) -> None:
    assert_sound(lambda s, t: deit_loss(s, t, kind=kind, temperature=3.0))
    assert_computes_halves_in_full(lambda s, t: deit_loss(s, t, kind=kind, temperature=3.0))


@both_kinds
def test_the_method_reads_the_distillation_head_where_there_is_one(kind: str) -> None:
    student, teacher, distilled = (random_logits(4, 10, seed=seed) for seed in (1, 2, 3))
    where = pair_of_networks()
    plain = build("deit", kind=kind)
    assert plain.needs == {Tap.LOGITS}
    expected = deit_loss(student, teacher, kind=kind, temperature=3.0)
    assert torch.equal(term(plain, student, teacher), expected)
    assert_no_gradient_for_the_teacher(plain)

    where = replace(where, student=replace(where.student, distillation_head=True))
    method = DeiT(DeiT.Params.model_validate({"kind": kind}), where)
    assert method.needs == DeiT.needs
    batch = Batch(torch.arange(4), torch.arange(4), 1, 1)
    taps = Taps(student, student, distillation_logits=distilled)
    expected = deit_loss(distilled, teacher, kind=kind, temperature=3.0)
    assert torch.equal(method(taps, Taps(teacher, teacher), batch), expected)


def test_networks_of_different_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 for the student resnet8 and 7 for the teacher"):
        DeiT(DeiT.Params(), pair_of_networks(10, 7))


# The network


@cache
def distilled_network() -> Backbone:
    return build_backbone(NAME, num_classes=5, in_channels=3, seed=0, image_size=(32, 32))


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_labels_are_for_one_head_and_the_teacher_for_the_other() -> None:
    network = distilled_network().train()
    assert network.distillation_head
    taps = network.taps(images(), frozenset({Tap.DISTILLATION_LOGITS}))
    assert taps.distillation_logits is not None
    heads = {"head": taps.logits, "head_dist": taps.distillation_logits}
    for name, logits in heads.items():
        network.zero_grad()
        torch.autograd.backward(cross_entropy(logits, torch.tensor([1, 3])), retain_graph=True)
        got = {
            head
            for head in heads
            if network.get_submodule(f"network.{head}").weight.grad is not None
        }
        assert got == {name}
    with torch.no_grad():
        library: Any = network.get_submodule("network")
        library.distilled_training = True
        first, second = library(images())
        library.distilled_training = False
    assert torch.allclose(taps.logits, first, atol=1e-6)
    assert torch.allclose(taps.distillation_logits, second, atol=1e-6)


@torch.no_grad()
def test_in_evaluation_and_for_other_methods_the_logits_are_the_mean_of_both() -> None:
    network = distilled_network()
    kinds = frozenset({Tap.DISTILLATION_LOGITS})
    apart = network.train().taps(images(), kinds)
    assert apart.distillation_logits is not None
    mean = (apart.logits + apart.distillation_logits) / 2
    together = network.taps(images(), frozenset({Tap.LOGITS}))
    evaluated = network.eval().taps(images(), kinds)
    for taps in (together, evaluated):
        assert taps.distillation_logits is None
        assert torch.allclose(taps.logits, mean, atol=1e-6)
    assert torch.allclose(network(images()), mean, atol=1e-6)
