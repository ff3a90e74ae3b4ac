"""ShuffleNets: V1's twin from the weights alone, torchvision's V2, what their units show."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, linear

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.shufflenet import GroupUnit


def as_if_trained(name: str) -> Backbone:
    """Float64; statistics and norms that are not fresh, which would hide a mix-up."""
    network = build_backbone(name, num_classes=5, in_channels=3, seed=0)
    generator = torch.Generator().manual_seed(1)
    for key, value in network.state_dict().items():
        if "running_var" in key:
            value.uniform_(0.05, 0.2, generator=generator)
        elif value.ndim == 1 and value.is_floating_point():
            value.uniform_(-0.5, 1, generator=generator)
    return network.double().eval()


def images(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


def shuffled(x: Tensor) -> Tensor:
    """Three groups dealt like cards: the first channel of each, the second of each, ..."""
    channels = x.shape[1]
    return x[:, [group * channels // 3 + i for i in range(channels // 3) for group in range(3)]]


def naive_v1_logits(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Section 3 of the paper, with nothing of the network but its weights."""

    def normed(x: Tensor, name: str) -> Tensor:
        mean, variance, gamma, beta = (
            weights[f"{name}.{part}"].reshape(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta

    x = normed(conv2d(x, weights["conv1.weight"]), "bn1").relu()
    for stage, depth in enumerate((4, 8, 4)):
        for number in range(depth):
            unit, stride = f"layers.{stage}.{number}", 1 if number else 2
            first = stage == number == 0
            y = conv2d(x, weights[f"{unit}.reduce.0.weight"], groups=1 if first else 3)
            y = normed(y, f"{unit}.reduce.1").relu()
            y = y if first else shuffled(y)
            depthwise = weights[f"{unit}.depthwise.0.weight"]
            y = conv2d(y, depthwise, stride=stride, padding=1, groups=y.shape[1])
            y = normed(y, f"{unit}.depthwise.1").relu()
            y = conv2d(y, weights[f"{unit}.expand.weight"], groups=3)
            y = normed(y, f"{unit}.last_norm")
            x = y + x if number else torch.cat([y, avg_pool2d(x, 3, 2, 1)], 1)
            x = x.relu()
    return linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


def test_the_logits_of_v1_are_the_twins() -> None:
    network = as_if_trained("shufflenetv1")
    with torch.no_grad():
        expected = naive_v1_logits(images(32, 45), network.state_dict())
        given = network(images(32, 45))
    assert (given - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_the_logits_of_v2_are_those_of_torchvisions_with_the_same_stem() -> None:
    from torchvision.models import ShuffleNetV2

    theirs = ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes=5)
    theirs.conv1[0], theirs.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    theirs = theirs.double().eval()
    network = as_if_trained("shufflenetv2")
    # Both register their modules from the image to the classifier.
    values = network.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    with torch.no_grad():
        expected, given = theirs(images(32, 45)), network(images(32, 45))
    assert (given - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_the_norms_of_v1_are_those_that_the_shortcut_is_added_to() -> None:
    network = as_if_trained("shufflenetv1")
    outputs: dict[str, Tensor] = {}
    entering: dict[str, Tensor] = {}
    layers = network.get_submodule("layers").children()
    for tap, units in zip(network.stages, layers, strict=True):
        *_, last = units.children()
        assert isinstance(last, GroupUnit)
        (norm,) = network.norms()[tap.name]
        norm.register_forward_hook(lambda _, __, y, key=tap.name: outputs.update({key: y}))
        last.register_forward_pre_hook(lambda _, x, key=tap.name: entering.update({key: x[0]}))
    _, *stages = network.walk(images(16, 24))
    for tap, before, _ in stages:
        torch.testing.assert_close(before, outputs[tap.name] + entering[tap.name])
    assert len(outputs) == 3


def test_in_v2_every_other_channel_of_a_stage_has_passed_its_last_unit() -> None:
    network = as_if_trained("shufflenetv2")
    _, *stages = network.walk(images(16, 24))
    for _, before, after in stages:
        assert torch.equal(before[:, 0::2], after[:, 0::2])
        assert (before[:, 1::2] < 0).any()
    assert list(network.norms()) == ["stem"]
