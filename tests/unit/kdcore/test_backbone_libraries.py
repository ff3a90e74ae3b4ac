"""The networks of torchvision and timm: what is found in them, against the networks themselves."""

import copy
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcore import DataConfig, Recipe, TeacherConfig, TermConfig, TrialConfig, distill
from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone, constructor_of
from kdcore.backbones.libraries import library_of
from kdcore.backbones.library_network import LibraryNetwork
from kdcore.backbones.names import check_backbone
from kdcore.backbones.probe import classifier_weight, probe_shapes
from kdcore.backbones.tracing.traced_network import trace_network
from kdcore.contract.taps import Tap
from kdcore.errors import NetworkError
from kdcore.networks.classifier import Classifier, ClassifierCard, load_classifier, save_classifier

MAPS = frozenset({Tap.MAPS, Tap.PREACTIVATIONS})

# Image side; channels/reduction and activation of stem and stages, read off the papers' tables and
# the libraries' sources: (r)elu, relu(6), (s)ilu, (h)ardswish, or (-) none.
TORCHVISION = {
    "alexnet": (64, "64/4r 192/8r 256/16r"),
    "vgg11": (32, "64/1r 128/2r 256/4r 512/8r 512/16r"),
    "resnet18": (48, "64/2r 64/4r 128/8r 256/16r 512/32r"),
    "squeezenet1_1": (64, "64/2r 128/4- 256/8- 512/16-"),
    "densenet121": (32, "64/2r 256/4- 512/8- 1024/16- 1024/32r"),
    "googlenet": (32, "64/2r 192/4r 480/8- 832/16- 1024/32-"),
    "inception_v3": (96, "64/2r 192/4r 288/8- 768/16- 2048/32-"),
    "mobilenet_v2": (32, "16/2- 24/4- 32/8- 96/16- 1280/326"),
    "mobilenet_v3_small": (32, "16/2h 16/4- 24/8- 48/16- 576/32h"),
    "mnasnet0_5": (32, "8/2- 16/4- 24/8- 48/16- 1280/32r"),
    "shufflenet_v2_x0_5": (32, "24/2r 48/8- 96/16- 1024/32r"),
    "efficientnet_b0": (32, "16/2- 24/4- 40/8- 112/16- 1280/32s"),
    "regnet_y_400mf": (32, "32/2r 48/4r 104/8r 208/16r 440/32r"),
    "convnext_tiny": (32, "96/4- 96/4- 192/8- 384/16- 768/32-"),
    "swin_t": (64, "96/4- 96/4- 192/8- 384/16- 768/32-"),
    "maxvit_t": (224, "64/2- 64/4- 128/8- 256/16- 512/32-"),
    "vit_b_32": (224, "768/32- 768/32- 768/32- 768/32- 768/32-"),
}
ACTIVATIONS = {"r": "relu", "6": "relu6", "s": "silu", "h": "hardswish", "-": "none"}

# Image side; how many of the taps timm itself lists, in `feature_info`. What it does not list is
# the stem before patches, and a last, wider convolution before the pooling, which it leaves out.
TIMM = {
    "resnet18": (32, 5, 0),
    "vgg11": (32, 5, 1),  # its sixth feature is the fifth, pooled
    "densenet121": (32, 5, 0),
    "efficientnet_b0": (32, 4, 1),
    "mobilenetv3_small_050": (32, 5, 0),
    "ghostnet_100": (32, 3, 2),
    "regnety_002": (32, 5, 0),
    "convnext_atto": (32, 4, 0),
    "levit_conv_128s": (224, 3, 0),
    "test_maxvit": (160, 5, 0),
    "swin_tiny_patch4_window7_224": (224, 4, 0),
    "test_nfnet": (64, 5, 0),
    "vit_tiny_patch16_224": (224, 4, 8),  # it lists every block
    "vit_tiny_patch16_dinov3_qkvb": (64, 0, 0),  # cannot be traced
}
NETWORKS = [f"torchvision/{name}" for name in TORCHVISION] + [f"timm/{name}" for name in TIMM]
# What is found in the others is compared with the table alone: they are large, or built as one of
# those that are computed.
COMPUTED = [
    "torchvision/alexnet",
    "torchvision/squeezenet1_1",
    "torchvision/googlenet",
    "torchvision/mobilenet_v3_small",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/efficientnet_b0",
    "torchvision/regnet_y_400mf",
    "torchvision/swin_t",
    "timm/resnet18",
    "timm/densenet121",
    "timm/ghostnet_100",
    "timm/convnext_atto",
    "timm/levit_conv_128s",
    "timm/test_maxvit",
    "timm/test_nfnet",
    "timm/vit_tiny_patch16_224",
    "timm/vit_tiny_patch16_dinov3_qkvb",
]
SMALL = [
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "timm/test_convnext",
    "timm/mobilenetv3_small_050",
    "timm/test_vit",
]

every_small_network = pytest.mark.parametrize("name", SMALL)


def side_of(name: str) -> int:
    package, network = name.split("/")
    return (TORCHVISION if package == "torchvision" else TIMM)[network][0]


def random_images(images: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(images, channels, height, width, generator=torch.Generator().manual_seed(0))


def close(given: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding: who adds up in which order is the processor's affair."""
    return bool((given - expected).abs().max() <= 1e-4 * expected.abs().max())


def trained(network: nn.Module) -> nn.Module:
    """Batch norms as if trained: fresh ones hide a mix-up, or their block."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.25, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return network


@cache
def small(name: str) -> LibraryNetwork:
    network = build_backbone(name, num_classes=5, in_channels=3, seed=0).eval()
    assert isinstance(network, LibraryNetwork)
    trained(network.network)
    return network


def small_images(name: str, images: int = 2) -> Tensor:
    side = 160 if name == "timm/test_vit" else 64
    return random_images(images, 3, side, side)


def described(network: Backbone) -> str:
    letters = {activation: letter for letter, activation in ACTIVATIONS.items()}
    return " ".join(
        f"{tap.channels}/{tap.reduction}{letters[tap.activation]}" for tap in network.declared
    )


# What is found


@pytest.mark.parametrize("name", NETWORKS)
def test_taps_are_found_where_the_papers_and_the_libraries_have_them(name: str) -> None:
    side = side_of(name)
    with torch.device("meta"), torch.no_grad():
        network = constructor_of(name)(5, 3).eval()
        taps = network.taps(torch.empty(2, 3, side, side), MAPS)
    assert isinstance(network, LibraryNetwork)
    assert list(taps.maps) == list(taps.preactivations) == [tap.name for tap in network.declared]
    assert taps.embedding.shape == (2, network.embedding_width)
    assert taps.logits.shape == (2, 5)
    for tap in network.declared:
        channels, *sides = taps.maps[tap.name].shape[1:]
        assert channels == tap.channels
        for map_side in sides:  # without padding, every convolution takes a few pixels
            assert side / tap.reduction - 5 < map_side <= -(-side // tap.reduction)

    package, library_name = name.split("/")
    if package == "torchvision":
        assert described(network) == TORCHVISION[library_name][1]
        return
    _, listed, others = TIMM[library_name]
    infos = [] if not listed else network.network.feature_info  # type: ignore[union-attr]
    features = [(info["num_chs"], info["reduction"]) for info in infos]  # type: ignore[union-attr,index]
    found = [(tap.channels, tap.reduction) for tap in network.declared]
    assert len(features) == listed + others or not listed
    start = next((n for n, tap in enumerate(found) if tap == features[0]), 0)
    start += bool(found) and len(found) - start > len(features)  # the stem before patches
    assert found[start : start + listed] == features[:listed]


@pytest.mark.parametrize("name", COMPUTED)
def test_a_forward_pass_is_the_librarys_and_shows_what_is_declared(name: str) -> None:
    network = build_backbone(name, num_classes=5, in_channels=3, seed=0).eval()
    assert isinstance(network, LibraryNetwork)
    side = side_of(name)
    images = random_images(2, 3, side, side)
    with torch.no_grad():
        expected = trained(network.network)(images)
        taps = network.taps(images, MAPS)
        walked = list(network.walk(images))

    assert (taps.logits - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1)
    assert taps.embedding.shape == (2, network.embedding_width)
    assert [tap.name for tap in network.declared] == list(taps.maps) == list(taps.preactivations)
    for tap, before, after in walked:
        given = taps.preactivations[tap.name]
        assert torch.equal(before, given)
        assert torch.equal(after, taps.maps[tap.name])
        if tap.activation == "none":
            assert given is taps.maps[tap.name]
        else:
            assert torch.equal(getattr(functional, tap.activation)(given), after)
            assert (given < 0).any()
    shapes = probe_shapes(name, num_classes=5, in_channels=3, image_size=(side, side))
    assert shapes.maps == {tap: tuple(value.shape[1:]) for tap, value in taps.maps.items()}


@pytest.mark.parametrize(
    "name",
    ["torchvision/mobilenet_v3_small", "torchvision/efficientnet_b0", "timm/test_byobnet"],
)
def test_training_is_the_librarys_too_with_the_weights_of_its_seed(name: str) -> None:
    found = library_of(name)
    assert found is not None
    torch.manual_seed(3)
    theirs = found[0].build(found[1], 5).train()
    ours = build_backbone(name, num_classes=5, in_channels=3, seed=3).train()
    assert isinstance(ours, LibraryNetwork)
    images = random_images(4, 3, 64, 64)
    results = []
    for network in (theirs, ours):
        torch.manual_seed(4)  # of dropout and stochastic depth
        logits = network(images)
        logits.square().sum().backward()
        results.append(logits)
    assert close(*results)
    for (key, expected), (given_key, given) in zip(
        theirs.state_dict().items(), ours.state_dict().items(), strict=True
    ):
        assert given_key == f"network.{key}"
        assert close(given, expected), key
    gradients = dict(ours.network.named_parameters())
    for key, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        gradient = gradients[key].grad
        assert gradient is not None
        assert close(gradient, parameter.grad), key


def test_each_batch_norm_keeps_its_own_mode() -> None:
    # timm's have an activation inside, and call the function themselves.
    network = copy.deepcopy(small("timm/mobilenetv3_small_050"))
    images = small_images("timm/mobilenetv3_small_050")
    with torch.no_grad():
        evaluated = network(images)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training, module.momentum = True, 0.0
        normalised_by_the_batch = network(images)
        assert torch.equal(normalised_by_the_batch, network.network(images))
        assert not torch.allclose(normalised_by_the_batch, evaluated)
        assert torch.equal(network.eval()(images), evaluated)


def test_the_embedding_is_what_the_last_layer_reads() -> None:
    network = small("timm/mobilenetv3_small_050")
    images = small_images("timm/mobilenetv3_small_050")
    with torch.no_grad():
        taps = network.taps(images, frozenset())
        classifier = network.network.get_submodule("classifier")
        assert torch.allclose(classifier(taps.embedding), taps.logits, atol=1e-6)

    squeezed = small("torchvision/squeezenet1_1")
    with torch.no_grad():
        taps = squeezed.taps(images, MAPS)
    # Its classifier is a convolution; the mean of what that reads stands for it.
    assert torch.allclose(taps.embedding, taps.maps["stage3"].mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["timm/mobilenetv3_small_050", "timm/test_convnext", "timm/vit_tiny_patch16_dinov3_qkvb"],
)
def test_the_last_layers_weight_is_that_of_the_logits(name: str) -> None:
    network = small(name)
    with torch.no_grad():
        taps = network.taps(small_images(name), frozenset())
    rows = classifier_weight(network)
    assert rows is not None
    first, second = taps.embedding @ rows.T - taps.logits
    assert torch.allclose(first, second, atol=1e-5)  # the bias is left
    squeezed = classifier_weight(small("torchvision/squeezenet1_1"))
    assert squeezed is not None
    assert squeezed.shape == (5, 512)  # of a convolution


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/shufflenet_v2_x0_5",
        "torchvision/resnet18",
        "torchvision/efficientnet_b0",
        "timm/test_resnet",
        "torchvision/swin_t",  # its maps have the channels last
    ],
)
@torch.no_grad()
def test_class_maps_average_to_the_logits_where_the_last_map_is_pooled(name: str) -> None:
    network, images = small(name), small_images(name)
    taps = network.taps(images, frozenset({Tap.CLASS_MAPS}))
    assert taps.class_maps is not None
    assert taps.class_maps.shape[:2] == (2, 5)
    assert min(taps.class_maps.shape[2:]) > 1
    assert close(taps.class_maps.mean((2, 3)), taps.logits)
    assert network.taps(images, frozenset()).class_maps is None


@pytest.mark.parametrize(
    "name",
    [
        "timm/mobilenetv3_small_050",  # a layer after the mean
        "timm/test_convnext",  # a norm after the mean
        "torchvision/squeezenet1_1",  # an activation after the classifier
        "timm/test_vit",
        "timm/vit_tiny_patch16_dinov3_qkvb",
    ],
)
@torch.no_grad()
def test_other_networks_have_no_class_maps(name: str) -> None:
    assert small(name).taps(small_images(name), frozenset({Tap.CLASS_MAPS})).class_maps is None


def test_dropout_comes_after_the_embedding() -> None:
    network = copy.deepcopy(small("torchvision/squeezenet1_1")).train()
    images = small_images("torchvision/squeezenet1_1")
    first, again = (network.taps(images, frozenset()) for _ in range(2))
    assert torch.equal(first.embedding, again.embedding)
    assert not torch.equal(first.logits, again.logits)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        (
            "torchvision/resnet18",
            {"stem": "bn1"} | {f"stage{n}": f"layer{n}.1.bn2" for n in (1, 2, 3, 4)},
        ),
        # One block a stage: the shortcut has a batch norm, too.
        ("timm/test_resnet", {"stem": "bn1"} | {f"stage{n}": f"layer{n}.0" for n in (1, 2, 3, 4)}),
        ("torchvision/mobilenet_v3_small", {"stem": "features.0.1", "stage4": "features.12.1"}),
        # The activation lies inside of its batch norm.
        ("timm/densenet121", {"stem": "features.norm0", "stage4": "features.norm5"}),
        ("torchvision/squeezenet1_1", {}),
    ],
)
def test_the_batch_norm_before_an_activation_is_found(name: str, paths: dict[str, str]) -> None:
    network = build_backbone(name, num_classes=5, in_channels=3, seed=0).eval()
    assert isinstance(network, LibraryNetwork)
    modules = {module: path for path, module in network.network.named_modules()}
    found = {tap: [modules[norm] for norm in norms] for tap, norms in network.norms().items()}
    if name == "timm/test_resnet":  # basic blocks, and bottlenecks
        assert all(path.rpartition(".")[2] in ("bn1", "bn2", "bn3") for (path,) in found.values())
        found = {tap: [path.rpartition(".bn")[0] or path] for tap, (path,) in found.items()}
    assert found == {tap: [path] for tap, path in paths.items()}


# What is taken


def test_a_gray_image_is_shown_to_all_channels() -> None:
    name = "timm/test_convnext"
    gray = build_backbone(name, num_classes=5, in_channels=1, seed=0).eval()
    colour = build_backbone(name, num_classes=5, in_channels=3, seed=0).eval()
    assert (gray.in_channels, colour.in_channels) == (1, 3)
    images = random_images(2, 1, 64, 48)
    with torch.no_grad():
        assert torch.equal(gray(images), colour(images.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("in_channels", [2, 4])
def test_other_channels_are_refused(in_channels: int) -> None:
    with pytest.raises(ValueError, match=f"in_channels is {in_channels}, but timm/test_resnet"):
        build_backbone("timm/test_resnet", num_classes=5, in_channels=in_channels, seed=0)


@pytest.mark.parametrize("side", [32, 256])
def test_a_network_of_one_size_names_it(side: int) -> None:
    name = "torchvision/maxvit_t"
    message = f"images are {side}x{side}, but {name} takes only 224x224"
    with pytest.raises(ValueError, match=message):
        probe_shapes(name, num_classes=5, in_channels=3, image_size=(side, side))


def test_a_network_without_maps_has_no_taps() -> None:
    network = small("timm/vit_tiny_patch16_dinov3_qkvb")
    assert (network.stem, network.stages, network.norms()) == (None, (), {})
    shapes = probe_shapes(
        "timm/vit_tiny_patch16_dinov3_qkvb", num_classes=5, in_channels=3, image_size=(64, 64)
    )
    assert (shapes.stem, shapes.stages, shapes.maps) == ("", (), {})


def test_a_network_that_the_meta_device_refuses_is_probed() -> None:
    # torchvision's RegNets compute their widths with tensors.
    torch.manual_seed(5)
    before = torch.get_rng_state()
    shapes = probe_shapes(
        "torchvision/regnet_x_400mf", num_classes=5, in_channels=1, image_size=(32, 48)
    )
    assert shapes.maps["stage4"] == (400, 1, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet5O", "did you mean 'torchvision/resnet50'"),
        ("timm/resnet18d2", "did you mean 'timm/resnet18d'"),
        ("torchvision/fcn_resnet50", "unknown backbone 'torchvision/fcn_resnet50'"),
        ("tv/resnet18", "unknown backbone 'tv/resnet18'; did you mean"),
    ],
)
def test_an_unknown_network_is_refused_with_the_one_that_was_meant(name: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        constructor_of(name)


def test_a_missing_library_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert check_backbone("timm/resnet18") == "timm/resnet18"  # known by the library alone
    with pytest.raises(NetworkError, match=r"needs timm: pip install 'kdsearch\[timm\]'"):
        constructor_of("timm/resnet18")


# What is done with it


@every_small_network
def test_copies_are_independent(name: str) -> None:
    network, images = small(name), small_images(name)
    with torch.no_grad():
        expected = network(images)
        other = copy.deepcopy(network)
        assert close(other(images), expected)
        for parameter in other.parameters():
            parameter.add_(1)
        assert not close(other(images), expected)
        assert torch.equal(network(images), expected)


@every_small_network
def test_layout_and_precision_change_nothing(name: str) -> None:
    network, images = small(name), small_images(name)
    with torch.no_grad():
        expected = network(images)
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert close(last(images.to(memory_format=torch.channels_last)), expected)
        with torch.autocast("cpu", torch.bfloat16):
            taps = network.taps(images, MAPS)
        for tap in network.declared:
            if tap.activation != "none":
                after = getattr(functional, tap.activation)(taps.preactivations[tap.name])
                assert torch.equal(after, taps.maps[tap.name])
        assert (taps.logits.float() - expected).abs().max() < 0.05


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "timm/test_convnext"])
def test_an_exported_network_gives_the_same_logits(name: str) -> None:
    network, images = small(name), small_images(name)
    with torch.no_grad():
        exported = torch.export.export(network, (images,)).module()
        assert close(exported(images), network(images))


@every_small_network
def test_a_saved_network_comes_back(name: str, tmp_path: Path) -> None:
    card = ClassifierCard(
        backbone=name,
        class_names=tuple("abcde"),
        in_channels=3,
        image_size=(64, 64),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    classifier = Classifier(small(name), card.mean, card.std)
    save_classifier(tmp_path, "student", classifier, card)
    images = small_images(name).clamp(0, 1)
    loaded, saved = load_classifier(tmp_path, "student"), classifier.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.state_dict().items())
    with torch.no_grad():
        assert close(loaded(images), classifier(images))


def test_a_network_of_one_library_teaches_one_of_the_other(
    digits_config: DataConfig, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=1, batch_size=32, acceleration="off")
    config = TrialConfig(
        data=digits_config.model_copy(update={"train_images": 64}),
        teacher=TeacherConfig(backbone="torchvision/shufflenet_v2_x0_5", training=recipe),
        student="timm/test_resnet",
        objective=tuple(TermConfig.model_validate({"method": m}) for m in ("kd", "fitnet")),
        training=recipe,
    )
    (report,) = distill(config, workspace=tmp_path, checkpoint_dir=tmp_path / "trial")
    assert list(report.train_terms) == ["cross_entropy", "kd", "fitnet"]
    (folder,) = (folder for folder in (tmp_path / "teachers").iterdir() if folder.is_dir())
    assert folder.name.startswith("digits-torchvision-shufflenet_v2_x0_5-")


# How it is found, on networks small enough to see it


class _Block(nn.Module):
    """An expansion, and a convolution that halves: no shortcut around them."""

    def __init__(self, channels: int, made: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.reduce = nn.Conv2d(4 * channels, made, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.reduce(functional.relu(self.expand(x), inplace=True))
        return halved


class _Toy(nn.Module):
    """It writes into its maps, has a branch, pools, and ends in channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.act = nn.SiLU(inplace=True)
        self.branch = nn.Conv2d(4, 4, 3, 1, 1)
        self.block = _Block(4, 6)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 7)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.conv(images))
        y = self.branch(x)
        x += y  # written into the activated map
        x = self.block(x)
        x.mul_(2)
        x = self.norm(x.permute(0, 2, 3, 1))
        x = functional.gelu(x)
        x = self.pool(x.permute(0, 3, 1, 2))
        logits: Tensor = self.fc(functional.dropout(x.mean((2, 3)), 0.5, self.training))
        return logits


def test_expansions_branches_and_pooled_maps_are_no_taps_and_none_is_written_to() -> None:
    with torch.device("meta"):
        anatomy = trace_network(_Toy(), 7, (32, 32))
    assert [(tap.name, tap.channels, tap.reduction, tap.activation) for tap in anatomy.taps] == [
        ("stem", 4, 2, "none"),
        ("stage1", 6, 4, "none"),
    ]
    assert anatomy.embedding_width == 6
    torch.manual_seed(0)
    toy = _Toy().eval()
    images = random_images(2, 3, 24, 40)
    with torch.no_grad():
        logits, embedding, pooled, heads, maps = anatomy.outputs[False](toy, images)
        assert heads is None
        (_, stem), (_, stage) = maps
        x = functional.silu(toy.conv(images))
        x = x + toy.branch(x)
        assert torch.equal(stem, x)
        x = functional.gelu(toy.norm((2 * toy.block(x)).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        assert torch.equal(stage, x)
        assert torch.equal(toy.fc(embedding), logits)
        assert pooled is not None
        assert torch.equal(pooled.mean((2, 3)), embedding)
        assert torch.equal(logits, toy(images))
