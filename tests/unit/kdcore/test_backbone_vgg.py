"""The networks of the paper against torchvision's, the small ones against their formula."""

from collections.abc import Iterator
from itertools import islice, pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, max_pool2d

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import BACKBONES, build_backbone
from kdcore.backbones.probe import probe
from kdcore.contract.taps import Tap

MAPS = frozenset({Tap.MAPS, Tap.PREACTIVATIONS})

IMAGENET = [f"vgg{layers}{norm}" for layers in (11, 13, 16, 19) for norm in ("", "_bn")]

# Instead of 4096: what stands between features and classifier is 120 million weights wide.
HIDDEN = 64


def randomise(network: nn.Module) -> None:
    """No two vectors of a norm are alike."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.zero_()
            elif value.ndim > 1:
                value.normal_(0, value[0].numel() ** -0.5, generator=random)
            elif name.endswith(("running_var", "weight")):
                value.uniform_(0.8, 1.25, generator=random)
            else:
                value.normal_(0, 0.1, generator=random)


def both(name: str) -> tuple[nn.Module, Backbone]:
    """Torchvision's network and ours, with the same weights and narrow hidden layers."""
    with torch.device("meta"):
        theirs: nn.Module = getattr(torchvision.models, name)(num_classes=12)
        ours = BACKBONES[name](12, 3)
        shapes = [
            {key: value.shape for key, value in network.state_dict().items()}
            for network in (theirs, ours)
        ]
        assert shapes[0] == shapes[1]
        for network in (theirs, ours):
            layers = network.get_submodule("classifier")
            assert isinstance(layers, nn.Sequential)
            widths = (512 * 7 * 7, HIDDEN, HIDDEN, 12)
            for place, made in zip((0, 3, 6), pairwise(widths), strict=True):
                layers[place] = nn.Linear(*made)
    theirs = theirs.to_empty(device="cpu")
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return theirs, ours


def close(given: Tensor, expected: Tensor) -> bool:
    return bool((given - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("name", IMAGENET)
def test_torchvisions_weights_load_and_give_the_same_outputs(name: str) -> None:
    theirs, ours = (network.eval() for network in both(name))
    pooled: list[Tensor] = []  # what its poolings read
    for layer in theirs.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_pre_hook(lambda _, inputs: pooled.extend(inputs))
    for size in ((64, 48), (32, 32)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        pooled.clear()
        with torch.no_grad():
            expected, taps = theirs(images), ours.taps(images, MAPS)
        assert close(taps.logits, expected)
        for given, read in zip(taps.maps.values(), pooled, strict=True):
            assert close(given, read)
        for before, after in zip(taps.preactivations.values(), taps.maps.values(), strict=True):
            assert torch.equal(before.relu(), after)


def test_the_last_dropout_comes_after_the_embedding() -> None:
    theirs, ours = (network.train() for network in both("vgg11"))
    read: list[Tensor] = []
    theirs.classifier[5].register_forward_pre_hook(lambda _, inputs: read.extend(inputs))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    outputs = []
    with torch.no_grad(), torch.random.fork_rng():
        for network in (theirs, lambda images: ours.taps(images, frozenset())):
            torch.manual_seed(2)
            outputs.append(network(images))
    assert close(outputs[1].embedding, read[0])
    assert close(outputs[1].logits, outputs[0])


def test_too_small_images_are_refused_with_the_smallest_size() -> None:
    with pytest.raises(ValueError, match=r"8x8, too small for vgg16: .* are 32x32"):
        probe("vgg16", num_classes=10, in_channels=3, image_size=(8, 8))


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("vgg8", [1, 1, 1, 1, 1]),
        ("vgg11_cifar", [1, 1, 2, 2, 2]),
        ("vgg19_cifar", [2, 2, 4, 4, 4]),
    ],
)
def test_small_networks_equal_a_naive_computation(name: str, depths: list[int]) -> None:
    network = build_backbone(name, num_classes=5, in_channels=1, seed=0).double().eval()
    randomise(network)
    images = torch.randn(2, 1, 32, 16, generator=torch.Generator().manual_seed(1)).double()
    tensors: Iterator[Tensor] = iter(network.state_dict().values())
    x = images
    with torch.no_grad():
        taps = network.taps(images, MAPS)
        for block, depth in enumerate(depths):
            for _ in range(depth):
                kernel, bias, gamma, beta, mean, variance, _ = (
                    tensor if tensor.ndim != 1 else tensor[:, None, None]
                    for tensor in islice(tensors, 7)
                )
                before = conv2d(x, kernel, bias.flatten(), padding=1)
                before = gamma * (before - mean) / (variance + 1e-5).sqrt() + beta
                x = before.clamp(min=0)
            name = f"stage{block}" if block else "stem"
            torch.testing.assert_close(taps.preactivations[name], before)
            torch.testing.assert_close(taps.maps[name], x)
            if block < 3:
                x = max_pool2d(x, 2)
        torch.testing.assert_close(taps.logits, linear(x.mean((2, 3)), *tensors))


@pytest.mark.parametrize("name", ["vgg16_bn", "vgg16_cifar"])
def test_the_norms_are_those_that_the_activations_read(name: str) -> None:
    with torch.device("meta"):
        network, images = BACKBONES[name](5, 3), torch.empty(2, 3, 32, 32)
    given: dict[str, Tensor] = {}
    for tap, (norm,) in network.norms().items():
        norm.register_forward_hook(lambda _, __, output, tap=tap: given.update({tap: output}))
    read = network.taps(images, MAPS).preactivations
    assert list(given) == list(read)
    assert all(given[tap] is read[tap] for tap in read)


def test_without_batch_norm_there_are_no_norms() -> None:
    with torch.device("meta"):
        assert BACKBONES["vgg11"](5, 3).norms() == {}
