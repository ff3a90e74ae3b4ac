"""Convolutions of maps side by side: the same sums, whatever the kernel, stride, size and batch."""

import copy
import itertools
import operator

import pytest
import torch
from torch import Tensor, nn

from kdcore.execution.execution import Execution
from kdcore.execution.side_by_side import NarrowConv2d

CPU = torch.device("cpu")
SIDE_BY_SIDE = Execution(channels_last=True, side_by_side=True)


def twins(layer: nn.Conv2d) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A layer and its copy that lays maps side by side, both in float64."""
    network = nn.Sequential(copy.deepcopy(layer.double()))
    SIDE_BY_SIDE.place(network, CPU)
    (narrow,) = network
    assert type(narrow) is NarrowConv2d
    return layer, narrow


def learned(layer: nn.Conv2d, maps: Tensor) -> list[Tensor]:
    """What a layer answers, and all gradients of a function of it."""
    maps = maps.clone().requires_grad_()
    answer = layer(maps)
    return [answer, *torch.autograd.grad(answer.square().sum(), (maps, *layer.parameters()))]


def assert_same(layer: nn.Conv2d, maps: Tensor) -> None:
    plain, narrow = twins(layer)
    for given, expected in zip(learned(narrow, maps), learned(plain, maps), strict=True):
        torch.testing.assert_close(given, expected)


def random_maps(batch: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch + height + width)
    shape = (batch, channels, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (3, 1)], ids=str)
def test_it_computes_what_a_plain_convolution_does(kernel: tuple[int, int], stride: int) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2)
    layer = nn.Conv2d(3, 5, kernel, stride, padding)
    for batch, height, width in itertools.product((1, 6, 32), (1, 4, 8), (1, 2, 3, 7, 8, 9, 16)):
        assert_same(layer, random_maps(batch, 3, height, width))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 2, padding=1),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 3, (1, 2), 1, bias=False),
    ],
    ids=str,
)
def test_so_it_does_where_maps_cannot_lie_side_by_side(layer: nn.Conv2d) -> None:
    assert_same(layer, random_maps(16, 4, 8, 8))


@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_of_gradients_are_right(kernel: int) -> None:
    _, narrow = twins(nn.Conv2d(2, 2, kernel, 2, kernel // 2))
    maps = random_maps(2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(narrow, maps)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_answers_and_gradients_are_in_channels_last_layout(kernel: int, stride: int) -> None:
    _, narrow = twins(nn.Conv2d(3, 5, kernel, stride, kernel // 2))
    maps = random_maps(16, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    answer, gradient, *_ = learned(narrow, maps)
    assert answer.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_a_layer_is_placed_and_replaced_with_its_weights() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
    before, parameters = copy.deepcopy(network.state_dict()), list(network.parameters())
    SIDE_BY_SIDE.place(network, CPU)
    assert [type(layer) for layer in network] == [NarrowConv2d, nn.ReLU, NarrowConv2d]
    Execution().place(network, CPU)
    assert [type(layer) for layer in network] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert list(network.state_dict()) == list(before)
    assert all(map(operator.is_, network.parameters(), parameters))  # the optimiser has them
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
