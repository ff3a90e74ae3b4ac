"""Every network of the catalogue: its size, its declarations, its weights."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import cross_entropy

from kdcore import backbones
from kdcore.backbones.backbone import Backbone, spatial_mean
from kdcore.backbones.catalogue import BACKBONES, build_backbone, constructor_of
from kdcore.backbones.names import FAMILIES, check_backbone
from kdcore.backbones.probe import classifier_weight, probe_shapes
from kdcore.contract.network_pair import Shapes
from kdcore.contract.taps import Tap
from kdcore.execution.execution import Execution
from kdcore.networks.classifier import Classifier, ClassifierCard, load_student, save_classifier

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
    "resnet50_cifar": 23_705_252,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "vgg8": 3_965_028,
    "vgg11_cifar": 9_277_284,
    "vgg13_cifar": 9_462_180,
    "vgg16_cifar": 14_774_436,
    "vgg19_cifar": 20_086_692,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
    "inception_v1": 13_378_280,  # with its auxiliary classifiers
    "inception_v1_bn": 13_385_816,
    "inception_v1_cifar": 5_964_164,
    "bn_inception": 11_285_224,
    "inception_v2": 25_954_248,
    "inception_v2_cifar": 24_110_148,
}
CLASSES = {
    **{f"resnet{layers}": 1000 for layers in (18, 34, 50, 101, 152)},
    **{f"vgg{layers}{norm}": 1000 for layers in (11, 13, 16, 19) for norm in ("", "_bn")},
    **dict.fromkeys(("inception_v1", "inception_v1_bn", "bn_inception", "inception_v2"), 1000),
}

MAPS = frozenset({Tap.MAPS, Tap.PREACTIVATIONS})
# Unpadded convolutions take so many pixels of a map at most.
TRIMMED = {"inception_v2": 3}
SMALLEST = {"inception_v2": 96}
COMPOSED = ("resnet20+fpn", "resnet18+fpn64-extra")

# One of each construction is computed. The others repeat it deeper or wider: they are walked on the
# meta device, and held to their published sizes, to torchvision's outputs, or to a twin.
COMPUTED = (
    "resnet8",
    "resnet18",
    "resnet50_cifar",
    "vgg8",
    "wrn_16_1",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
    "inception_v1",
    "bn_inception",
    "inception_v2",
    "inception_v2_cifar",
    "resnet20+fpn",
)

# With what others lack: shuffled groups, auxiliary classifiers, a pyramid.
EXPORTED = ("resnet8", "vgg8", "wrn_16_1", "shufflenetv1", "inception_v1", "resnet20+fpn")


@cache
def on_meta(name: str) -> Backbone:
    """A network without numbers."""
    with torch.device("meta"):
        return constructor_of(name)(7, 3)


@cache
def probed(name: str) -> tuple[tuple[int, int], Shapes]:
    """Height and width of a small image that all reductions divide, and what it shows; it is not
    square."""
    step = max(tap.reduction for tap in on_meta(name).declared)
    for side in range(SMALLEST.get(name, -(-16 // step) * step), 225, step):
        size = side, side + step
        try:
            return size, probe_shapes(name, num_classes=7, in_channels=3, image_size=size)
        except ValueError:
            continue
    raise AssertionError(f"{name} takes no image up to 224x224")


def size_of(name: str) -> tuple[int, int]:
    return probed(name)[0]


@pytest.fixture(scope="module", params=COMPUTED)
def name(request: pytest.FixtureRequest) -> str:
    """Each network in turn; the tests of one run together, so that it is built once."""
    return str(request.param)


@pytest.fixture(scope="module")
def network(name: str) -> Backbone:
    return build_backbone(name, num_classes=7, in_channels=3, seed=0).eval()


def random_images(images: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(images, channels, height, width, generator=torch.Generator().manual_seed(0))


def close(given: Tensor, expected: Tensor, share: float) -> bool:
    return bool((given - expected).abs().max() <= share * expected.abs().max())


# Every network, without computing anything


@pytest.mark.parametrize("known", BACKBONES)
def test_parameter_counts_are_the_published_ones(known: str) -> None:
    with torch.device("meta"):
        network = BACKBONES[known](CLASSES.get(known, 100), 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[known]


@pytest.mark.parametrize("declared", [*BACKBONES, *COMPOSED])
@torch.no_grad()
def test_maps_have_the_names_and_shapes_that_are_declared(declared: str) -> None:
    network, (size, shapes) = on_meta(declared).eval(), probed(declared)
    with torch.device("meta"):
        taps = network.taps(torch.empty(2, 3, *size), MAPS)
    assert list(taps.maps) == list(taps.preactivations) == [tap.name for tap in network.declared]
    for tap in network.declared:
        after = taps.maps[tap.name]
        assert after.shape[:2] == (2, tap.channels)
        for side, given in zip(size, after.shape[2:], strict=True):
            assert 0 <= side // tap.reduction - given <= TRIMMED.get(declared, 0)
        assert taps.preactivations[tap.name].shape == after.shape
        norms = network.norms().get(tap.name, ())
        assert not norms or sum(norm.num_features for norm in norms) == tap.channels
    assert set(network.norms()) <= {tap.name for tap in network.declared}
    assert taps.embedding.shape == (2, network.embedding_width)
    assert taps.logits.shape == (2, network.num_classes) == (2, 7)

    assert shapes.network == declared
    assert (shapes.stem, *shapes.stages) == tuple(tap.name for tap in network.declared)
    with torch.device("meta"):
        maps = network.taps(torch.empty(2, 3, *size), MAPS, frozenset(network.further)).maps
    assert set(maps) == {*taps.maps, *network.further}
    assert shapes.maps == {tap: tuple(value.shape[1:]) for tap, value in maps.items()}
    assert shapes.embedding_width == taps.embedding.shape[1]
    assert shapes.num_classes == taps.logits.shape[1]


@pytest.mark.parametrize(
    "repeating", [name for name in (*BACKBONES, *COMPOSED) if name not in COMPUTED]
)
def test_every_weight_has_a_part_in_the_logits(repeating: str) -> None:
    network = on_meta(repeating).train()
    with torch.device("meta"):
        taps = network.taps(torch.empty(4, 3, *size_of(repeating)), frozenset())
    torch.stack([taps.logits, *taps.auxiliary_logits]).sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
    network.zero_grad()


# What is computed


def test_a_grey_image_gives_maps_of_the_same_shapes(name: str) -> None:
    size, coloured = probed(name)
    assert probe_shapes(name, num_classes=7, in_channels=1, image_size=size) == coloured


@torch.no_grad()
def test_what_is_asked_for_is_kept_and_related_as_declared(network: Backbone, name: str) -> None:
    images = random_images(2, 3, *size_of(name))
    taps = network.taps(images, MAPS)
    for tap in network.declared:
        before, after = taps.preactivations[tap.name], taps.maps[tap.name]
        if tap.activation == "none":
            assert after is before
        else:
            assert torch.equal(getattr(functional, tap.activation)(before), after)
            assert (before < 0).any()
    assert torch.equal(network.classify(taps.embedding), taps.logits)
    rows = classifier_weight(network)
    assert rows is not None
    first, second = taps.embedding @ rows.T - taps.logits
    assert torch.allclose(first, second, atol=1e-4)  # the bias is left
    of_classes = network.taps(images, frozenset({Tap.CLASS_MAPS})).class_maps
    shown = probe_shapes(name, num_classes=7, in_channels=3, image_size=size_of(name)).class_map
    if of_classes is None:
        assert shown is None
        assert taps.embedding.shape[1:] != (network.declared[-1].channels,)
    else:
        assert of_classes.shape == (2, network.num_classes, *(shown or ()))
        assert torch.allclose(of_classes.mean((2, 3)), taps.logits, atol=1e-4)

    alone = network.taps(images, frozenset())
    assert (alone.maps, alone.preactivations) == ({}, {})
    assert torch.equal(alone.logits, taps.logits)
    assert network.taps(images, frozenset({Tap.MAPS})).preactivations == {}
    assert network.taps(images, frozenset({Tap.PREACTIVATIONS})).maps == {}
    assert torch.equal(network(images), taps.logits)


@torch.no_grad()
def test_company_and_layout_change_nothing(network: Backbone, name: str) -> None:
    images, device = random_images(3, 3, *size_of(name)), torch.device("cpu")
    expected = network(images)
    assert close(torch.cat([network(image[None]) for image in images]), expected, 1e-4)
    for side_by_side in (False, True):
        try:
            Execution(channels_last=True, side_by_side=side_by_side).place(network, device)
            given = network(images.to(memory_format=torch.channels_last))
        finally:
            Execution().place(network, device)
        assert close(given, expected, 1e-3), side_by_side


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_of_a_mean_has_the_layout_of_the_maps(layout: torch.memory_format) -> None:
    maps = random_images(2, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
    gradients: list[Tensor] = []
    passed = maps.clone()
    passed.register_hook(gradients.append)
    means = spatial_mean(passed)
    torch.testing.assert_close(means, maps.mean((2, 3)))
    means.sum().backward()
    assert gradients[0].is_contiguous(memory_format=layout)
    assert torch.equal(gradients[0], torch.full_like(maps, 1 / 20))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in COMPUTED),
        # Processors without bfloat16 take long for it.
        *((name, torch.bfloat16) for name in EXPORTED),
    ],
    ids=str,
    indirect=["name"],
    scope="module",
)
def test_every_gradient_is_finite(network: Backbone, name: str, dtype: torch.dtype) -> None:
    state = {key: value.clone() for key, value in network.named_buffers()}
    network.train()
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            taps = network.taps(random_images(4, 3, *size_of(name)), frozenset())
        logits = torch.stack([taps.logits, *taps.auxiliary_logits]).float()
        cross_entropy(logits.flatten(0, 1), torch.arange(len(logits) * 4) % 7).backward()
        for parameter_name, parameter in network.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
    finally:
        network.zero_grad()
        network.eval()
        for key, value in network.named_buffers():
            value.copy_(state[key])


@pytest.mark.parametrize("name", EXPORTED, indirect=True, scope="module")
@torch.no_grad()
def test_an_exported_program_gives_the_same_logits(network: Backbone, name: str) -> None:
    images = random_images(2, 3, *size_of(name))
    program = torch.export.export(network, (images,))
    assert close(program.module()(images), network(images), 1e-4)


@torch.no_grad()
def test_saved_and_loaded_it_gives_the_same_logits_without_what_only_training_needs(
    network: Backbone, name: str, tmp_path: Path
) -> None:
    card = ClassifierCard(
        backbone=name,
        class_names=tuple("abcdefg"),
        in_channels=3,
        image_size=size_of(name),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    classifier = Classifier(network, card.mean, card.std)
    save_classifier(tmp_path, "student", classifier, card)
    loaded = load_student(tmp_path)
    saved = classifier.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.state_dict().items())
    images = torch.randint(256, (2, 3, *size_of(name)), dtype=torch.uint8)
    assert close(loaded(images), classifier(images), 1e-4)
    assert not loaded.backbone.auxiliary


def test_the_same_seed_gives_the_same_weights(network: Backbone, name: str) -> None:
    again = build_backbone(name, num_classes=7, in_channels=3, seed=0)
    for (key, first), second in zip(network.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second), key


def test_another_seed_gives_other_weights() -> None:
    first, other = (
        build_backbone("resnet8", num_classes=10, in_channels=1, seed=seed).state_dict()
        for seed in (3, 4)
    )
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


def test_the_names_are_those_of_the_families_files() -> None:
    files = [
        importlib.import_module(f"{backbones.__name__}.{found.name}")
        for found in pkgutil.iter_modules(backbones.__path__)
        if not found.ispkg
    ]
    defined = {
        file.__name__.rpartition(".")[2]: tuple(file.NETWORKS)
        for file in files
        if hasattr(file, "NETWORKS")
    }
    assert list(FAMILIES.items()) == list(defined.items())


def test_a_known_backbone_passes_its_check() -> None:
    assert [check_backbone(name) for name in BACKBONES] == list(BACKBONES)
