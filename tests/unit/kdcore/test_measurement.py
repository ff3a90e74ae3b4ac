"""Parameters, multiply-adds, latency."""

import pytest
import torch
from torch import nn

from kdcore.backbones.catalogue import build_backbone, constructor_of
from kdcore.backbones.tracing.torch_private import count_flops
from kdcore.contract.taps import Tap
from kdcore.networks import measurement
from kdcore.networks.cost import LATENCY_BATCH
from kdcore.networks.measurement import (
    count_multiply_adds,
    count_network,
    count_outputs,
    count_parameters,
    measure_busy_share,
    measure_evaluation_memory,
    measure_latency,
    measure_network,
    measure_training,
)

CPU = torch.device("cpu")

# Those of torchvision's documentation in 10^9 for 224x224, and of the ResNet paper for CIFAR.
MULTIPLY_ADDS = {
    "resnet18": 1.81e9,
    "resnet50": 4.09e9,
    "vgg16": 15.47e9,
    "resnet20": 0.041e9,
    "torchvision/vit_b_32": 4.41e9,
}


@pytest.mark.parametrize(("name", "published"), MULTIPLY_ADDS.items())
def test_multiply_adds_are_the_published_ones(name: str, published: float) -> None:
    with torch.device("meta"):
        network = constructor_of(name)(1000, 3)
    assert count_multiply_adds(network, network.native_size) == pytest.approx(published, rel=0.01)


def test_multiply_adds_are_those_of_the_layers_added_by_hand() -> None:
    network = build_backbone("resnet8", num_classes=7, in_channels=1, seed=0).train()
    total = 0

    def add(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    counted = count_multiply_adds(network, (20, 12))
    assert network.training
    for module in network.modules():
        module.register_forward_hook(add)
    network.eval()(torch.zeros(1, 1, 20, 12))
    assert counted == total


def test_attention_counts_whatever_computes_it() -> None:
    tokens, width = 10, 16
    attention = nn.MultiheadAttention(width, 2, batch_first=True).eval()

    class Attending(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            attended: torch.Tensor = attention(images, images, images, need_weights=False)[0]
            return attended

    projections, products = 4 * tokens * width**2, 2 * tokens**2 * width
    images = torch.zeros(1, tokens, width)
    assert count_flops(Attending(), images) == 2 * (projections + products)
    assert torch.backends.mha.get_fastpath_enabled()  # as it was


def test_what_only_training_needs_does_not_count() -> None:
    with torch.device("meta"):
        network = constructor_of("inception_v1")(1000, 3)
    network.drop_auxiliary()
    assert count_parameters(network) == 6_998_552


def test_latency_is_the_median_of_repeated_passes_in_evaluation() -> None:
    class Sleeper(nn.Module):
        passes = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            Sleeper.passes += 1
            return images

    network = Sleeper().train()
    assert 0 < measure_latency(network, torch.zeros(1)) < 100
    assert Sleeper.passes > 10
    assert network.training


def test_a_networks_cost_is_whole() -> None:
    cost = measure_network("resnet8", num_classes=10, in_channels=1, image_size=(8, 8), device=CPU)
    network = build_backbone("resnet8", num_classes=10, in_channels=1, seed=0)
    assert cost.parameters == count_parameters(network)
    assert cost.multiply_adds == count_multiply_adds(network, (8, 8))
    assert 0 < cost.latency_ms < cost.batch_latency_ms < LATENCY_BATCH * cost.latency_ms * 2
    assert cost.threads == torch.get_num_threads()
    assert cost.device


def test_what_is_counted_without_computing_is_what_is_counted_of_the_network() -> None:
    for name, size in (("resnet8+fpn", 16), ("shufflenetv2", 32), ("wrn_16_1", 8), ("vgg8", 32)):
        network = build_backbone(name, num_classes=7, in_channels=3, seed=0)
        network.drop_auxiliary()
        counted = count_network(name, num_classes=7, in_channels=3, image_size=(size, size))
        expected = count_parameters(network), count_multiply_adds(network, (size, size))
        assert counted == expected, name


def test_the_memory_of_a_step_follows_its_batch_and_its_network() -> None:
    network = build_backbone("resnet8", num_classes=10, in_channels=3, seed=0)
    weights = 4 * sum(parameter.nbytes for parameter in network.parameters())
    costs = [
        measure_training(network, (32, 32), batch, torch.device("cpu")).memory_bytes - weights
        for batch in (8, 16, 64)
    ]
    # Batch norm keeps means and deviations of the few images that were measured.
    assert costs[1] == pytest.approx(2 * costs[0], rel=0.01)
    assert costs[2] == pytest.approx(8 * costs[0], rel=0.01)
    # Each block's two convolutions, norms and activations keep at least four maps of its stage.
    maps = 64 * 4 * (16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8) * 4
    assert maps < costs[2] < 3 * maps


def test_a_whole_batch_is_measured_where_that_takes_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = build_backbone("resnet8", num_classes=10, in_channels=3, seed=0)

    def measured(launches: float, most: int) -> float:
        """On a device with memory for so many images, a millisecond each."""

        def seconds(network: object, images: torch.Tensor) -> float:
            if len(images) > most:
                raise torch.OutOfMemoryError
            return launches + 0.001 * len(images)

        monkeypatch.setattr(measurement, "_step_seconds", seconds)
        return measure_training(network, (8, 8), 64, CPU).seconds

    assert measured(0.01, most=64) == pytest.approx(0.074)
    assert measured(0.01, most=63) == pytest.approx(64 / 8 * 0.018)
    assert measured(0.2, most=64) == pytest.approx(64 / 8 * 0.208)


def test_the_busy_share_is_what_images_add_to_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts launches and images in place of seconds."""
    network = build_backbone("resnet8", num_classes=10, in_channels=3, seed=0)
    now = launches = 0.0

    def forward(images: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += launches + len(images)
        return images.flatten(1).requires_grad_()

    monkeypatch.setattr(network, "forward", forward)
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: now)
    for cost, batch, share in ((0.0, 2, 0.0), (0.0, 64, 62 / 64), (1000.0, 64, 62 / 1064)):
        launches = cost
        assert measure_busy_share(network, (8, 8), batch, CPU) == pytest.approx(share)

    def no_room(images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(network, "forward", no_room)
    assert measure_busy_share(network, (8, 8), 64, CPU) == 1


def test_a_networks_outputs_and_the_memory_to_compute_them() -> None:
    network = build_backbone("resnet8", num_classes=10, in_channels=3, seed=0)
    maps = 2 * 16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8  # the stem's and those of three stages
    both = frozenset({Tap.MAPS, Tap.PREACTIVATIONS})
    for kinds, values in ((frozenset({Tap.LOGITS}), 0), ({Tap.MAPS}, maps), (both, 2 * maps)):
        assert count_outputs(network, (32, 32), frozenset(kinds)) == 10 + 64 + values
    weights = sum(parameter.nbytes for parameter in network.parameters())
    sizes = [measure_evaluation_memory(network, (32, 32), batch, CPU) for batch in (4, 8, 64)]
    # A layer of the first stage reads and writes maps of 16 channels.
    assert [size - weights for size in sizes] == [
        batch * 2 * 2 * 16 * 32 * 32 * 4 for batch in (4, 8, 64)
    ]
