"""Wide residual networks against a naive computation in the order of the paper."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.fpn import PyramidClassifier
from kdcore.backbones.probe import probe_shapes
from kdcore.contract.layer_pairs import equal_depth_pairs, layer_options
from kdcore.contract.taps import Tap

MAPS = frozenset({Tap.MAPS, Tap.PREACTIVATIONS})
SUMS = frozenset({"stage1_sum", "stage2_sum", "stage3_sum"})


def network_of(name: str) -> Backbone:
    """In float64, with statistics and norms as if trained."""
    network = build_backbone(name, num_classes=5, in_channels=1, seed=0).double()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for vector in (module.running_mean, module.bias):
                    vector.normal_(0, 0.1, generator=random)
                for vector in (module.running_var, module.weight):
                    vector.uniform_(0.8, 1.25, generator=random)
    return network


def images_of(height: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, height, width, generator=random, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "blocks"), [("wrn_16_1", 2), ("wrn_16_2", 2), ("wrn_40_1", 6), ("wrn_40_2", 6)]
)
def test_outputs_are_what_a_naive_computation_gives(name: str, blocks: int) -> None:
    network, images = network_of(name).eval(), images_of(16, 24)
    state = network.state_dict()

    def normalised(x: Tensor, norm: str) -> Tensor:
        mean, variance, gamma, beta = (
            state[f"{norm}.{vector}"][:, None, None]
            for vector in ("running_mean", "running_var", "weight", "bias")
        )
        return gamma * (x - mean) / (variance + 1e-5).sqrt() + beta

    taps, sums = [], []
    x, norm = conv2d(images, state["conv1.weight"], padding=1), "bn1"
    for stage in range(3):
        for number in range(blocks):
            block = f"groups.{stage}.{number}"
            first = number == 0
            stride = 2 if first and stage > 0 else 1
            before = normalised(x, norm)
            after = before.clamp(min=0)
            if first:
                taps.append((before, after))
                sums.append(x)
            inner = conv2d(after, state[f"{block}.conv1.weight"], stride=stride, padding=1)
            inner = normalised(inner, f"{block}.bn1").clamp(min=0)
            if f"{block}.shortcut.weight" in state:
                x = conv2d(after, state[f"{block}.shortcut.weight"], stride=stride)
            x = x + conv2d(inner, state[f"{block}.conv2.weight"], padding=1)
            norm = f"{block}.bn2"
    before = normalised(x, norm)
    after = before.clamp(min=0)
    taps.append((before, after))
    sums.append(x)

    with torch.no_grad():
        given, further = network.taps(images, MAPS), network.taps(images, MAPS, SUMS)
    torch.testing.assert_close(list(given.preactivations.values()), [tap for tap, _ in taps])
    torch.testing.assert_close(list(given.maps.values()), [tap for _, tap in taps])
    logits = linear(after.mean((2, 3)), state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(given.logits, logits)

    assert list(given.maps) == ["stem", "stage1", "stage2", "stage3"]
    assert set(further.maps) == set(further.preactivations) == {*given.maps, *SUMS}
    torch.testing.assert_close([further.maps[name] for name in sorted(SUMS)], sums[1:])
    assert all(torch.equal(further.maps[name], given.maps[name]) for name in given.maps)
    assert torch.equal(further.logits, given.logits)


@torch.no_grad()
def test_a_sum_normalised_and_activated_is_the_stages_map() -> None:
    network = network_of("wrn_16_2").eval()
    taps = network.taps(images_of(16, 24), MAPS, SUMS)
    norms = network.norms()
    assert set(network.further) == SUMS
    for name, tap in network.further.items():
        stage = name.removesuffix("_sum")
        (norm,) = norms[stage]
        assert tap.activation == "none"
        assert taps.maps[name] is taps.preactivations[name]
        assert taps.maps[name].shape[1] == tap.channels
        assert (taps.maps[name] < 0).any()
        assert torch.equal(norm(taps.maps[name]), taps.preactivations[stage])
        assert torch.equal(norm(taps.maps[name]).relu(), taps.maps[stage])


@torch.no_grad()
def test_a_sum_is_read_only_where_it_is_named() -> None:
    network, images = network_of("wrn_16_1").eval(), images_of(16, 16)
    stages = ["stem", "stage1", "stage2", "stage3"]
    for named in (frozenset[str](), frozenset({"stem", "stage2", "p2"})):
        taps = network.taps(images, MAPS, named)
        assert list(taps.maps) == list(taps.preactivations) == stages
    one = network.taps(images, frozenset({Tap.MAPS}), frozenset({"stage2_sum"}))
    assert (set(one.maps), one.preactivations) == ({*stages, "stage2_sum"}, {})
    assert network.taps(images, frozenset(), SUMS).maps == {}


def test_sums_are_shapes_but_neither_stages_nor_what_a_search_tries() -> None:
    shapes = probe_shapes("wrn_16_2", num_classes=5, in_channels=1, image_size=(32, 32))
    assert shapes.stages == ("stage1", "stage2", "stage3")
    assert {name: shapes.maps[name] for name in SUMS} == {
        f"{stage}_sum": shapes.maps[stage] for stage in shapes.stages
    }
    options = ("all", *map(str, equal_depth_pairs(shapes, shapes)), *layer_options(shapes, shapes))
    assert not any("sum" in option for option in options)


@torch.no_grad()
def test_a_pyramid_stands_on_the_stages() -> None:
    pyramid, images = network_of("wrn_16_1+fpn").eval(), images_of(16, 16)
    assert isinstance(pyramid, PyramidClassifier)
    taps, below = pyramid.taps(images, MAPS, SUMS), pyramid.body.taps(images, MAPS, SUMS)
    assert list(taps.maps) == ["stem", "p2", "p3", "p4"]
    levels = pyramid.fpn([below.maps[f"stage{number}"] for number in (1, 2, 3)])
    assert all(map(torch.equal, levels, list(taps.maps.values())[1:]))


def test_only_a_change_of_width_or_resolution_has_a_projection() -> None:
    for name, stages in (("wrn_16_1", (1, 2)), ("wrn_16_2", (0, 1, 2))):
        keys = [key for key in network_of(name).state_dict() if "shortcut" in key]
        assert keys == [f"groups.{stage}.0.shortcut.weight" for stage in stages]


def test_every_norm_works_once_and_the_activations_read_those_that_are_named() -> None:
    network = network_of("wrn_16_2").train()
    given: dict[str, Tensor] = {}
    for tap, (norm,) in network.norms().items():
        norm.register_forward_hook(lambda _, __, output, tap=tap: given.update({tap: output}))
    read = network.taps(images_of(16, 16), MAPS).preactivations
    assert list(given) == list(read)
    assert all(given[tap] is read[tap] for tap in read)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [1] * 13
