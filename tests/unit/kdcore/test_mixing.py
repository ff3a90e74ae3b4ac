"""Mixed images: their partners, pixels and labels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from kdcore import DataConfig
from kdcore.contract.taps import Mixed, Tap
from kdcore.data.augmentation.mixing import Mixing, beta_quantiles, mixing_of
from kdcore.data.augmentation.steps import Step, parse_augmentation
from kdcore.data.image_data import ImageData
from kdcore.data.split import TableSplit
from kdcore.methods.dkd import dkd_loss
from kdcore.methods.nkd import nkd_loss
from kdcore.methods.wsld import wsld_loss
from kdcore.networks.classifier import build_classifier
from kdcore.operations.labels import label_loss, label_losses
from tests.cases import Case


def steps_of(*listed: Any) -> tuple[Step, ...]:
    steps = parse_augmentation(listed)
    assert isinstance(steps, tuple)
    return steps


def drawn(*listed: Any, images: int = 4000, sides: tuple[int, int] = (20, 30)) -> Mixing:
    mixing = mixing_of(
        steps_of(*listed),
        torch.arange(images) * 3,
        seed=0,
        view=5,
        sides=sides,
        partners_of=lambda bits: bits % images,
    )
    assert mixing is not None
    return mixing


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.8, 1.0, 3.0, 100.0])
def test_shares_are_distributed_by_beta(alpha: float) -> None:
    values = torch.tensor(beta_quantiles(alpha)).double() / 2**15
    ranks = (torch.arange(4096).double() + 0.5) / 4096
    assert torch.allclose(values, torch.from_numpy(stats.beta.ppf(ranks, alpha, alpha)), atol=3e-4)
    assert (values.diff() >= 0).all()


def test_mixup_is_that_of_torchvision_rounded() -> None:
    mixing = drawn("mixup", images=64)
    pixels = torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8)
    partners = torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8)
    mixed = mixing.pixels(pixels, partners)
    theirs = v2.MixUp(num_classes=5)
    for number in range(64):
        # Its mixing is of a batch with the batch rolled on by one.
        pair = torch.stack([partners[number], pixels[number]]).float()
        labels = torch.tensor([1, 0])
        share = mixing.shares[number].item()
        params = {"lam": share, "labels": labels, "batch_size": 2}
        assert torch.equal(mixed[number].float(), (theirs.transform(pair, params)[1] + 0.5).floor())
    assert abs(mixing.shares.mean() - 0.5) < 0.15


def test_cutmix_is_that_of_torchvision() -> None:
    mixing = drawn("cutmix", images=300, sides=(8, 12))
    pixels = torch.randint(256, (300, 3, 8, 12), dtype=torch.uint8)
    partners = torch.randint(256, (300, 3, 8, 12), dtype=torch.uint8)
    mixed = mixing.pixels(pixels, partners)
    theirs = v2.CutMix(num_classes=5)
    for number in range(300):
        top, left, bottom, right = mixing.boxes[number].tolist()
        pair = torch.stack([partners[number], pixels[number]])
        params = {"box": (left, top, right, bottom), "labels": None, "batch_size": 2}
        assert torch.equal(mixed[number], theirs.transform(pair, params)[1])
        shown = 1 - (bottom - top) * (right - left) / 96
        assert mixing.shares[number].item() == pytest.approx(shown)


def test_boxes_are_drawn_as_torchvision_does() -> None:
    mixing = drawn("cutmix")
    torch.manual_seed(0)
    theirs = v2.CutMix(num_classes=2)
    shares = [theirs.make_params([torch.empty(1, 3, 20, 30)])["lam_adjusted"] for _ in range(2000)]
    ours, expected = mixing.shares.double(), torch.tensor(shares).double()
    assert abs(ours.mean() - expected.mean()) < 0.02
    assert abs(ours.std() - expected.std()) < 0.02


def test_where_both_are_listed_each_image_draws_one() -> None:
    mixing = drawn("mixup", "cutmix")
    mixup = mixing.parts < 2**15
    box = (mixing.boxes > 0).any(1)
    assert not (mixup & box).any()
    assert abs(mixup.double().mean() - 0.5) < 0.03
    assert len(mixing.partners.unique()) > 2000


def test_the_dominant_class_has_the_larger_share() -> None:
    mixing = drawn("mixup", images=500)
    own, partners = torch.randint(9, (500,)), torch.randint(9, (500,))
    labels, mixed = mixing.classes(own, partners)
    assert (mixed.shares >= 0.5).all()
    large = mixing.shares >= 0.5
    assert torch.equal(labels, torch.where(large, own, partners))
    assert torch.equal(mixed.labels, torch.where(large, partners, own))
    assert large.any()
    assert not large.all()


def test_the_loss_of_mixed_labels_is_that_of_their_shares() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64)
    labels, others = torch.randint(5, (6,)), torch.randint(5, (6,))
    shares = torch.tensor([0.5, 0.6, 0.75, 0.9, 1.0, 0.99], dtype=torch.float64)
    targets = torch.zeros(6, 5, dtype=torch.float64)
    targets.scatter_add_(1, labels[:, None], shares[:, None])
    targets.scatter_add_(1, others[:, None], 1 - shares[:, None])
    mixed = Mixed(others, shares)
    expected = cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(label_losses(logits, labels, mixed), expected)
    assert torch.allclose(label_loss(logits, labels, mixed), expected.mean())
    assert torch.allclose(label_loss(logits, labels, mixed, reduction="sum"), expected.sum())
    smoothed = 0.8 * targets + 0.2 / 5
    value = label_loss(logits, labels, mixed, smoothing=0.2)
    assert torch.allclose(value, cross_entropy(logits, smoothed))


def test_a_share_of_one_is_no_mixing_to_the_bit() -> None:
    torch.manual_seed(0)
    labels, others = torch.randint(10, (64,)), torch.randint(10, (64,))
    results = []
    for mixed in (None, Mixed(others, torch.ones(64))):
        logits = torch.linspace(-9, 9, 640).sin().mul(8).view(64, 10).requires_grad_()
        loss = label_loss(logits, labels, mixed)
        (gradient,) = torch.autograd.grad(loss, logits)
        results.append((loss, gradient))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def mixed_split(digits: ImageData, *listed: Any) -> TableSplit:
    assert isinstance(digits.train, TableSplit)
    return replace(digits.train, steps=steps_of(*listed))


@pytest.mark.parametrize("step", ["mixup", "cutmix"])
def test_a_partner_shows_its_own_view(digits: ImageData, step: str) -> None:
    split = mixed_split(digits, {"pad_crop": {"padding": 1}}, "rand_augment", step)
    alone = replace(split, steps=split.steps[:-1] if split.steps else None)
    order = torch.arange(len(split))
    (plain,) = alone.views(order, 3, len(split))
    mixing = split.mixing(order, 3)
    assert mixing is not None
    (shown,) = split.views(order, 3, len(split))
    assert torch.equal(shown, mixing.pixels(plain, plain[mixing.partners]))
    labels, mixed = split.classes(3)
    assert mixed is not None
    assert torch.equal(torch.where(mixing.shares >= 0.5, labels, mixed.labels), split.labels)
    assert alone.classes(3) == (alone.labels, None)


def test_mixed_views_are_the_same_in_every_batch_and_order(digits: ImageData) -> None:
    split = mixed_split(digits, "flip", "rand_augment", "mixup", "cutmix")
    (whole,) = split.views(torch.arange(len(split)), 1, len(split))
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    for size in (1, 7, 100):
        with Case(f"batches of {size}"):
            batches = torch.cat(list(split.views(order[:130], 1, size)))
            assert torch.equal(batches, whole[order[:130]])
    (other,) = split.views(torch.arange(len(split)), 2, len(split))
    assert not torch.equal(whole, other)
    assert not torch.equal(split.classes(1)[0], split.classes(2)[0])


def test_evaluation_sees_images_as_they_are(digits: ImageData) -> None:
    config = DataConfig(name="digits", augmentation="strong")
    assert config.mixes
    split = mixed_split(digits, "flip", "mixup")
    assert torch.equal(torch.cat(list(split.batches(50))), split.images)


def test_a_method_of_targets_averages_over_both() -> None:
    """A target that is drawn by its share: dkd and nkd are linear in it, wsld's weights are not."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 6, 10, generator=generator, dtype=torch.float64)
    labels, others = torch.arange(6), torch.tensor([3, 1, 9, 8, 7, 0])
    settings: dict[Callable[..., Tensor], dict[str, float]] = {
        dkd_loss: {"target_weight": 1.0, "nontarget_weight": 8.0, "temperature": 4.0},
        nkd_loss: {"nontarget_weight": 1.5, "temperature": 2.0},
    }
    for loss, numbers in settings.items():
        mixed = Mixed(others, torch.full((6,), 0.7, dtype=torch.float64))
        both = loss(student, teacher, labels, mixed=mixed, **numbers)
        first, second = (loss(student, teacher, each, **numbers) for each in (labels, others))
        assert both.item() == pytest.approx((0.7 * first + 0.3 * second).item())
    shares = torch.full((6,), 0.5, dtype=torch.float64)
    one, other = (
        wsld_loss(student, teacher, first, temperature=4.0, mixed=Mixed(second, shares))
        for first, second in ((labels, others), (others, labels))
    )
    assert one.item() == pytest.approx(other.item())


def test_input_gradients_are_those_of_both_classes(digits: ImageData) -> None:
    network = build_classifier("resnet8", digits, seed=0).eval()
    images = digits.train.images[:5]
    needs = frozenset({Tap.INPUT_GRADIENT, Tap.FLIPPED_INPUT_GRADIENT})
    labels, others = torch.arange(5), torch.arange(5) + 3

    def gradients(labels: Tensor, share: float | None = None) -> list[Tensor]:
        mixed = None if share is None else Mixed(others, torch.full((5,), share))
        taps = network.taps(images, needs, labels, mixed=mixed)
        assert taps.input_gradient is not None
        assert taps.flipped_input_gradient is not None
        return [taps.input_gradient.detach(), taps.flipped_input_gradient.detach()]

    for first, second, both, whole in zip(
        gradients(labels),
        gradients(others),
        gradients(labels, 0.75),
        gradients(labels, 1.0),
        strict=True,
    ):
        assert torch.allclose(both, 0.75 * first + 0.25 * second, atol=1e-6)
        assert torch.equal(whole, first)
