"""Inception networks: published values, auxiliary classifiers, norms of many branches."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, relu
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, InceptionAux
from torchvision.models.googlenet import Inception as GoogLeNetModule
from torchvision.models.inception import (
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from kdcore import Classifier, Recipe
from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import BACKBONES, build_backbone
from kdcore.backbones.inception import NETWORKS
from kdcore.backbones.probe import probe_shapes
from kdcore.contract.taps import Tap, Taps
from kdcore.data.image_data import ImageData, open_data
from kdcore.networks.classifier import ClassifierCard, load_classifier, save_classifier
from kdcore.training.loop import train

MAPS = frozenset({Tap.MAPS, Tap.PREACTIVATIONS})
WITH_AUXILIARY = ["inception_v1", "inception_v1_bn"]


def build(name: str, in_channels: int = 1) -> Backbone:
    return build_backbone(name, num_classes=5, in_channels=in_channels, seed=0)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def vary_norms(network: nn.Module) -> None:
    """Weights and statistics as if trained: fresh ones hide a mix-up."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.25, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.25, generator=generator)


@torch.no_grad()
def copy_in_order(source: Iterable[Tensor], target: nn.Module) -> None:
    for theirs, ours in zip(source, target.state_dict().values(), strict=True):
        assert theirs.shape == ours.shape
        ours.copy_(theirs)


def assert_close(given: Tensor, expected: Tensor) -> None:
    assert given.shape == expected.shape
    assert (given - expected).abs().max() <= 1e-9 * expected.abs().max()


# Values


class BiasedConv(nn.Conv2d):
    """In the place of torchvision's convolution with batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return relu(super().forward(x))


def torchvisions_googlenet(name: str) -> GoogLeNet:
    """With the paper's 5x5 convolutions (torchvision's are 3x3) and padded poolings."""
    make = BiasedConv if name == "inception_v1" else BasicConv2d
    network = GoogLeNet(
        5,
        aux_logits=name in WITH_AUXILIARY,
        init_weights=False,
        blocks=[
            make,
            partial(GoogLeNetModule, conv_block=make),
            partial(InceptionAux, conv_block=make),
        ],
        dropout=0,
        dropout_aux=0,
    )
    for module in network.modules():
        if isinstance(module, GoogLeNetModule):
            three = module.branch3[1]
            convolution = three if isinstance(three, nn.Conv2d) else three.conv
            widths = convolution.in_channels, convolution.out_channels
            module.branch3[1] = make(*widths, kernel_size=5, padding=2)
    pools = {number: nn.MaxPool2d(3, 2, 1) for number in (1, 2, 3, 4)}
    if name == "inception_v1":
        norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        pools[1], pools[2] = nn.Sequential(pools[1], norm), nn.Sequential(norm, pools[2])
    if name == "inception_v1_cifar":
        network.conv1 = make(3, 192, kernel_size=3, padding=1)
        network.conv2 = network.conv3 = pools[1] = pools[2] = nn.Identity()
    for number, pool in pools.items():
        setattr(network, f"maxpool{number}", pool)
    return network.double()


@pytest.mark.parametrize("name", [*WITH_AUXILIARY, "inception_v1_cifar"])
def test_v1_in_training_gives_what_torchvisions_arrangement_gives(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torchvisions_googlenet(name)
    vary_norms(theirs)
    ours = build(name, 3).double()
    auxiliary_first = sorted(theirs.state_dict().items(), key=lambda item: item[0][:3] != "aux")
    copy_in_order((value for _, value in auxiliary_first), ours)
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = noise(2, 3, 64, 48) if name in WITH_AUXILIARY else noise(2, 3, 12, 8)
    with torch.no_grad():
        expected, given = theirs(images), ours.taps(images, frozenset())
    if name in WITH_AUXILIARY:
        first, second = given.auxiliary_logits
        assert_close(first, expected.aux_logits1)
        assert_close(second, expected.aux_logits2)
        expected = expected.logits
    assert_close(given.logits, expected)


def torchvisions_v2(name: str, monkeypatch: pytest.MonkeyPatch) -> Sequence[nn.Sequential]:
    """The stem and the three stages."""

    def figure5() -> InceptionA:
        block = InceptionA(288, pool_features=64)
        block.branch5x5_2 = BasicConv2d(48, 64, kernel_size=3, padding=1)
        return block

    stem = nn.Sequential(
        BasicConv2d(3, 32, kernel_size=3, stride=2),
        BasicConv2d(32, 32, kernel_size=3),
        BasicConv2d(32, 64, kernel_size=3, padding=1),
        nn.MaxPool2d(3, 2),
        BasicConv2d(64, 80, kernel_size=3),
        BasicConv2d(80, 192, kernel_size=3, stride=2),
        BasicConv2d(192, 288, kernel_size=3, padding=1),
    )
    stages = (
        nn.Sequential(figure5(), figure5(), figure5()),
        nn.Sequential(
            InceptionB(288),
            *(InceptionC(768, channels_7x7=width) for width in (128, 160, 160, 160, 192)),
        ),
        nn.Sequential(InceptionD(768), InceptionE(1280), InceptionE(2048)),
    )
    if name == "inception_v2_cifar":
        stem[3] = nn.Identity()
        for module in stem.modules():
            if isinstance(module, nn.Conv2d):
                module.stride, module.padding = (1, 1), (1, 1)
        for module in (module for stage in stages for module in stage.modules()):
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.padding = (1, 1)
        padded = SimpleNamespace(
            relu=relu, avg_pool2d=avg_pool2d, max_pool2d=partial(max_pool2d, padding=1)
        )
        monkeypatch.setattr("torchvision.models.inception.F", padded)
    return (stem, *stages)


@pytest.mark.parametrize(
    ("name", "size"), [("inception_v2", (75, 83)), ("inception_v2_cifar", (13, 16))]
)
def test_v2_gives_what_torchvisions_blocks_give(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = torchvisions_v2(name, monkeypatch)
        theirs = nn.ModuleList([*blocks, nn.Linear(2048, 5)]).double()
    vary_norms(theirs)
    ours = build(name, 3).double()
    copy_in_order(theirs.state_dict().values(), ours)
    x = noise(2, 3, *size)
    with torch.no_grad():
        taps = ours.taps(x, MAPS)
        for given, stage in zip(taps.maps.values(), theirs[:-1], strict=True):
            x = stage(x)
            assert_close(given, x)
        assert_close(taps.logits, theirs[-1](x.mean((2, 3))))


# Figure 5 of the paper: #1x1 (0 where the module halves the grid), #3x3 reduce, #3x3,
# double #3x3 reduce, double #3x3, pooling, its projection.
BN_INCEPTION = """
    3a  64  64  64  64  96 avg  32
    3b  64  64  96  64  96 avg  64
    3c   0 128 160  64  96 max   0
    4a 224  64  96  96 128 avg 128
    4b 192  96 128  96 128 avg 128
    4c 160 128 160 128 160 avg 128
    4d  96 128 192 160 192 avg 128
    4e   0 128 192 192 256 max   0
    5a 352 192 320 160 224 avg 128
    5b 352 192 320 192 224 max 128
"""


def naive_bn_inception(weights: Iterator[Tensor], images: Tensor) -> list[Tensor]:
    """The maps of the stem, 3b, 4d and 5b."""

    def conv(x: Tensor, width: int, kernel: int = 1, stride: int = 1) -> Tensor:
        filters = next(weights)
        assert filters.shape == (width, x.shape[1], kernel, kernel)
        x = conv2d(x, filters, None, stride, kernel // 2)
        gamma, beta, mean, variance = (next(weights)[:, None, None] for _ in range(4))
        next(weights)  # the count of batches
        return relu((x - mean) / (variance + 1e-3).sqrt() * gamma + beta)

    x = max_pool2d(conv(images, 64, 7, 2), 3, 2, 1)
    x = conv(conv(x, 64), 192, 3)
    maps = [x]
    x = max_pool2d(x, 3, 2, 1)
    for row in BN_INCEPTION.split("\n")[1:-1]:
        name, pooling = row.split()[0], row.split()[6]
        one, reduce3, three, reduce_double, double, projection = (
            int(number) for number in row.split()[1:] if number.isdigit()
        )
        stride = 1 if one else 2
        branches = [conv(x, one)] if one else []
        branches.append(conv(conv(x, reduce3), three, 3, stride))
        branches.append(conv(conv(conv(x, reduce_double), double, 3), double, 3, stride))
        pooled = (avg_pool2d if pooling == "avg" else max_pool2d)(x, 3, stride, 1)
        branches.append(conv(pooled, projection) if projection else pooled)
        x = torch.cat(branches, 1)
        if name in ("3b", "4d", "5b"):
            maps.append(x)
    return maps


@torch.no_grad()
def test_bn_inception_gives_what_the_papers_table_gives() -> None:
    network = build("bn_inception", 3).double().eval()
    vary_norms(network)
    images = noise(2, 3, 72, 40)
    taps = network.taps(images, MAPS)
    *weights, head, bias = network.state_dict().values()
    left = iter(weights)
    expected = naive_bn_inception(left, images)
    assert not list(left)
    for given, map_ in zip(taps.maps.values(), expected, strict=True):
        assert_close(given, map_)
    assert_close(taps.logits, expected[-1].mean((2, 3)) @ head.T + bias)


# Sizes


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_v1_has_the_published_number_of_parameters_without_its_auxiliary_classifiers() -> None:
    with torch.device("meta"):
        network = BACKBONES["inception_v1"](1000, 3)
    assert parameters_of(network) == 13_378_280
    network.drop_auxiliary()
    assert parameters_of(network) == 6_998_552


def test_bn_inception_has_the_published_number_of_parameters_but_for_idle_biases() -> None:
    with torch.device("meta"):
        network = BACKBONES["bn_inception"](1000, 3)
    biases = sum(m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d))
    assert parameters_of(network) + biases == 11_295_240


@pytest.mark.parametrize("size", [(75, 331), (106, 107)], ids=str)
def test_v2_has_the_sides_that_its_docstring_says(size: tuple[int, int]) -> None:
    maps = probe_shapes("inception_v2", num_classes=5, in_channels=3, image_size=size).maps
    lost = {"stem": (19, 8), "stage1": (19, 8), "stage2": (27, 16), "stage3": (43, 32)}
    assert {name: map_[1:] for name, map_ in maps.items()} == {
        name: tuple((side - less) // reduction for side in size)
        for name, (less, reduction) in lost.items()
    }


def test_v2_has_the_maps_of_table_1() -> None:
    shapes = probe_shapes("inception_v2", num_classes=5, in_channels=3, image_size=(299, 299))
    stem, *stages = shapes.maps.values()
    assert stem == (288, 35, 35)
    assert stages == [(288, 35, 35), (768, 17, 17), (2048, 8, 8)]


# Norms


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "inception_v1"])
@torch.no_grad()
def test_norms_stand_in_the_order_of_the_maps_channels(name: str) -> None:
    network = build(name).eval()
    vary_norms(network)
    seen: dict[nn.Module, Tensor] = {}
    for norms in network.norms().values():
        for norm in norms:
            norm.register_forward_hook(lambda module, _, output: seen.update({module: output}))
    side = 75 if name == "inception_v2" else 16
    taps = network.taps(torch.randn(1, 1, side, side), MAPS)
    assert list(network.norms()) == list(taps.maps)
    for tap, norms in network.norms().items():
        outputs = torch.cat([seen[norm] for norm in norms], 1)
        assert torch.equal(outputs, taps.preactivations[tap])


def test_the_network_without_norms_names_none() -> None:
    assert build("inception_v1").norms() == {}


# Dropout and auxiliary classifiers


@pytest.mark.parametrize(
    ("name", "share"),
    [("inception_v1", 0.4), ("inception_v1_cifar", 0.4), ("bn_inception", 0.0)],
)
def test_dropout_stands_between_embedding_and_classifier(name: str, share: float) -> None:
    network, read = build(name), []
    network.fc.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    network.classify(torch.ones(100, 1024))
    assert (read[0] == 0).float().mean() == pytest.approx(share, abs=0.01)
    network.eval().classify(torch.ones(1, 1024))
    assert (read[1] == 1).all()


def auxiliary_sum(taps: Taps) -> Tensor:
    return torch.stack(taps.auxiliary_logits).square().sum()


@pytest.mark.parametrize("name", WITH_AUXILIARY)
def test_auxiliary_classifiers_work_in_training_only_and_teach_what_comes_before_them(
    name: str,
) -> None:
    network, images = build(name), noise(3, 1, 40, 32).float()
    assert network.auxiliary_weight == 0.3
    shares = [part.p for part in network.auxiliary.modules() if isinstance(part, nn.Dropout)]
    assert shares == [0.7, 0.7]
    taps = network.taps(images, MAPS)
    assert [tuple(logits.shape) for logits in taps.auxiliary_logits] == [(3, 5)] * 2
    assert list(taps.maps) == ["stem", "stage1", "stage2", "stage3"]
    auxiliary_sum(taps).backward()
    for key, parameter in network.named_parameters():
        after_4d = key.startswith(("inception4e", "inception5", "fc"))
        assert (parameter.grad is None) == after_4d, key
        assert after_4d or parameter.grad.any(), key

    assert network.eval().taps(images, MAPS).auxiliary_logits == ()
    network.train().drop_auxiliary()
    assert network.taps(images, MAPS).auxiliary_logits == ()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in WITH_AUXILIARY])
def test_other_networks_have_no_auxiliary_classifiers(name: str) -> None:
    with torch.device("meta"):
        network = BACKBONES[name](5, 3)
    assert not network.auxiliary
    assert network.auxiliary_weight == 0


def test_a_network_on_disk_is_the_same_without_auxiliary_classifiers(tmp_path: Path) -> None:
    mean, std = (0.5,), (0.25,)
    classifier = Classifier(build("inception_v1"), mean, std).eval()
    card = ClassifierCard(
        backbone="inception_v1",
        class_names=tuple("abcde"),
        in_channels=1,
        image_size=(32, 24),
        mean=mean,
        std=std,
    )
    save_classifier(tmp_path, "student", classifier, card)
    loaded = load_classifier(tmp_path, "student")
    images = torch.rand(2, 1, 32, 24)
    assert torch.equal(loaded(images), classifier(images))
    assert parameters_of(loaded) < parameters_of(classifier)
    assert not [key for key in loaded.backbone.state_dict() if key.startswith("auxiliary")]
    loaded.train()
    assert loaded.taps(images, frozenset(), torch.zeros(2).long()).auxiliary_logits == ()


def test_training_reports_the_auxiliary_classifiers_as_one_weighted_term(
    digits: ImageData, workspace: Path
) -> None:
    data = open_data(digits.config.model_copy(update={"train_images": 32}), workspace)
    network = build_backbone("inception_v1", num_classes=10, in_channels=1, seed=0)
    before = {key: value.clone() for key, value in network.auxiliary.named_parameters()}
    (report,) = train(
        Classifier(network, data.mean, data.std),
        (),
        None,
        data,
        Recipe(epochs=1, batch_size=32, learning_rate=0.01, acceleration="off"),
        seed=0,
        identity="test",
        device=torch.device("cpu"),
        checkpoint_dir=None,
    )
    assert list(report.train_terms) == ["cross_entropy", "auxiliary"]
    cross_entropy, auxiliary = report.train_terms.values()
    assert report.train_loss == pytest.approx(cross_entropy + 0.3 * auxiliary, rel=1e-5)
    assert auxiliary > 2  # two classifiers, each near log(10) = 2.3
    for key, value in network.auxiliary.named_parameters():
        assert not torch.equal(value, before[key]), key
