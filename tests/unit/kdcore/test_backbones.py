"""Every network of the catalogue: its size, its declarations, its weights."""

from functools import cache

import pytest
import torch
from torch import Tensor

from kdcore.backbones import BACKBONES, Backbone, build_backbone, check_backbone, probe_shapes
from kdcore.taps import Tap, TapInfo

# At 100 classes and 3 channels, unless the name says otherwise; those of the distillation
# literature and of torchvision.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "resnet50": 25_557_032,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
CLASSES = {"resnet50": 1000}

MAPS = frozenset({Tap.MAPS, Tap.PREACTIVATIONS})

every_backbone = pytest.mark.parametrize("name", BACKBONES)


@cache
def backbone(name: str, in_channels: int) -> Backbone:
    return build_backbone(name, num_classes=7, in_channels=in_channels, seed=0).eval()


def random_images(images: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(images, channels, height, width, generator=torch.Generator().manual_seed(0))


@every_backbone
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):  # counts without computing 25 million initial weights
        network = BACKBONES[name](CLASSES.get(name, 100), 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@every_backbone
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    "size", [(32, 32), (28, 28), (20, 36)], ids=lambda size: "x".join(map(str, size))
)
def test_declarations_are_what_a_forward_pass_shows(
    name: str, in_channels: int, size: tuple[int, int]
) -> None:
    network = backbone(name, in_channels)
    with torch.no_grad():
        taps = network.taps(random_images(2, in_channels, *size), MAPS)

    declared: list[TapInfo] = [network.stem, *network.stages]
    assert list(taps.maps) == list(taps.preactivations) == [tap.name for tap in declared]
    for tap in declared:
        sides = [-(-side // tap.reduction) for side in size]  # rounded up
        assert taps.maps[tap.name].shape == (2, tap.channels, *sides)
        assert torch.equal(taps.preactivations[tap.name].relu(), taps.maps[tap.name])
        assert (taps.preactivations[tap.name] < 0).any()
    assert taps.embedding.shape == (2, network.embedding_width)
    assert torch.equal(taps.embedding, taps.maps[declared[-1].name].mean((2, 3)))
    assert taps.logits.shape == (2, network.num_classes) == (2, 7)
    assert network.in_channels == in_channels

    shapes = probe_shapes(name, num_classes=7, in_channels=in_channels, image_size=size)
    assert shapes.network == name
    assert (shapes.stem, *shapes.stages) == tuple(tap.name for tap in declared)
    assert shapes.maps == {tap: tuple(value.shape[1:]) for tap, value in taps.maps.items()}
    assert shapes.embedding_width == taps.embedding.shape[1]
    assert shapes.num_classes == taps.logits.shape[1]


@every_backbone
def test_only_what_is_asked_for_is_kept_and_the_logits_are_the_same(name: str) -> None:
    network, images = backbone(name, 1), random_images(2, 1, 16, 16)
    with torch.no_grad():
        alone = network.taps(images, frozenset())
        assert (alone.maps, alone.preactivations) == ({}, {})
        assert network.taps(images, frozenset({Tap.MAPS})).preactivations == {}
        assert network.taps(images, frozenset({Tap.PREACTIVATIONS})).maps == {}
        assert torch.equal(network(images), alone.logits)
        assert torch.equal(network.fc(alone.embedding), alone.logits)


@every_backbone
def test_every_weight_gets_a_gradient(name: str) -> None:
    network = build_backbone(name, num_classes=3, in_channels=1, seed=0)
    network(random_images(4, 1, 32, 32)).square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (
        build_backbone("resnet8", num_classes=10, in_channels=1, seed=seed).state_dict()
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key, value in first.items():
        if value.ndim > 1:
            assert not torch.equal(value, other[key]), key


def test_building_and_probing_leave_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_backbone("resnet8", num_classes=10, in_channels=1, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    probe_shapes("resnet8", num_classes=10, in_channels=1, image_size=(8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_do_not_depend_on_the_global_random_state() -> None:
    torch.manual_seed(1)
    first = build_backbone("resnet8", num_classes=10, in_channels=1, seed=3).state_dict()
    torch.manual_seed(2)
    again = build_backbone("resnet8", num_classes=10, in_channels=1, seed=3).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize(
    "use",
    [
        check_backbone,
        lambda name: build_backbone(name, num_classes=10, in_channels=1, seed=0),
        lambda name: probe_shapes(name, num_classes=10, in_channels=1, image_size=(8, 8)),
    ],
    ids=["check", "build", "probe"],
)
def test_an_unknown_backbone_is_refused_with_the_one_that_was_meant(use: object) -> None:
    assert callable(use)
    with pytest.raises(ValueError, match="unknown backbone 'resnet5O'; did you mean 'resnet5") as e:
        use("resnet5O")
    assert all(name in str(e.value) for name in BACKBONES)


def test_a_known_backbone_passes_its_check() -> None:
    assert [check_backbone(name) for name in BACKBONES] == list(BACKBONES)


def test_weights_of_torchvisions_resnet50_load_and_give_the_same_outputs() -> None:
    from torchvision.models import resnet50

    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = resnet50(weights=None, num_classes=12).eval()
        for module in theirs.modules():  # statistics as if trained: fresh ones hide a mix-up
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.25)
    with torch.device("meta"):
        ours = BACKBONES["resnet50"](12, 3).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = random_images(2, 3, 64, 48)
    with torch.no_grad():
        expected, given = theirs(images), ours(images)
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()
