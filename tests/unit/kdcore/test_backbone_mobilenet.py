"""MobileNetV2: its twin from the weights alone, its linear stages."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.contract.taps import Tap

# By stage, each block's stride.
STRIDES = [(1, 1, 1), (2, 1, 1), (2, 1, 1, 1, 1, 1, 1), (2, 1, 1, 1)]


def as_if_trained() -> Backbone:
    """Float64; statistics and norms that are not fresh, which would hide a mix-up."""
    network = build_backbone("mobilenetv2", num_classes=5, in_channels=3, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.05, 0.2, generator=generator)
        elif value.ndim == 1 and value.is_floating_point():
            value.uniform_(0.2, 1, generator=generator)
    return network.double().eval()


def images(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


def naive_logits(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Section 3 of the paper, with nothing of the network but its weights."""

    def normed(x: Tensor, name: str) -> Tensor:
        mean, variance, gamma, beta = (
            weights[f"{name}.{part}"].reshape(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta

    def convolved(x: Tensor, name: str, **how: int) -> Tensor:
        return normed(conv2d(x, weights[f"{name}.0.weight"], **how), f"{name}.1")

    x = normed(conv2d(x, weights["conv1.weight"], stride=2, padding=1), "bn1").clamp(0, 6)
    for stage, strides in enumerate(STRIDES):
        for number, stride in enumerate(strides):
            block = f"layers.{stage}.{number}"
            wide = convolved(x, f"{block}.expand").clamp(0, 6)
            wide = convolved(
                wide, f"{block}.depthwise", stride=stride, padding=1, groups=wide.shape[1]
            ).clamp(0, 6)
            narrow = convolved(wide, f"{block}.project")
            x = x + narrow if x.shape == narrow.shape else narrow
    x = convolved(x, "last").clamp(0, 6).mean((2, 3))
    return linear(x, weights["fc.weight"], weights["fc.bias"])


def test_the_logits_are_the_twins() -> None:
    network = as_if_trained()
    with torch.no_grad():
        expected = naive_logits(images(32, 45), network.state_dict())
        given = network(images(32, 45))
    assert (given - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_the_stem_ends_at_six_and_the_stages_are_linear() -> None:
    network = as_if_trained()
    (stem, before, after), *stages = network.walk(5 * images(32, 32))
    assert (stem.activation, before.max() > 6, after.max()) == ("relu6", True, 6)
    for stage, before, after in stages:
        assert stage.activation == "none"
        assert before is after
        assert before.min() < 0
    assert list(network.norms()) == ["stem"]


def test_the_embedding_is_wider_than_the_last_map() -> None:
    with torch.no_grad():
        taps = as_if_trained().taps(images(16, 16), frozenset({Tap.MAPS}))
    assert taps.maps["stage4"].shape == (2, 160, 1, 1)
    assert taps.embedding.shape == (2, 1280)
    assert 0 <= taps.embedding.min() <= taps.embedding.max() <= 6
