"""Feature pyramids: torchvision's outputs, a twin, names, and what is left of the body."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from kdcore.backbones.catalogue import BACKBONES, build_backbone
from kdcore.backbones.fpn import FeaturePyramid, PyramidClassifier
from kdcore.backbones.names import check_backbone
from kdcore.backbones.probe import probe, probe_shapes
from kdcore.backbones.resnet import BasicBlock, ResNet
from kdcore.contract.layer_pairs import equal_depth_pairs
from kdcore.contract.taps import Tap
from kdcore.methods.fitnet import fitnet_loss

MAPS = frozenset({Tap.MAPS, Tap.PREACTIVATIONS})

# Of images with 30x45 pixels: no side is twice the next.
ODD = [(30, 45), (15, 23), (8, 12), (4, 6)]
CHANNELS = (8, 12, 5, 20)


def random(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def resnet(depth: int) -> ResNet:
    """So many stages of one block."""
    return ResNet(
        3,
        1,
        block=BasicBlock,
        depths=(1,) * depth,
        stem_width=4,
        widths=tuple(4 * 2**stage for stage in range(depth)),
        small_images=True,
    )


def test_the_pyramid_of_resnet50_has_the_published_size() -> None:
    with torch.device("meta"):
        pyramid = FeaturePyramid((256, 512, 1024, 2048), 256)
    assert sum(parameter.numel() for parameter in pyramid.parameters()) == 3_344_384


@pytest.mark.parametrize("extra_level", [False, True], ids=["", "extra"])
def test_weights_of_torchvisions_pyramid_give_the_same_levels(extra_level: bool) -> None:
    extra = LastLevelMaxPool() if extra_level else None
    theirs = FeaturePyramidNetwork(list(CHANNELS), 16, extra_blocks=extra)
    for number, parameter in enumerate(theirs.parameters()):  # their biases are zero
        parameter.data = random(*parameter.shape, seed=number)
    ours = FeaturePyramid(CHANNELS, 16, extra_level=extra_level)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    maps = [random(2, c, *size) for c, size in zip(CHANNELS, ODD, strict=True)]
    with torch.no_grad():
        expected = theirs({str(number): x for number, x in enumerate(maps)}).values()
        given = ours(maps)
    assert len(given) == len(maps) + extra_level
    for level, wanted in zip(given, expected, strict=True):
        assert (level - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def naive_levels(maps: Sequence[Tensor], weights: dict[str, Tensor]) -> list[Tensor]:
    """Figure 3 of the paper; a place of a finer map reads the one that covers its corner."""
    levels = []
    coarser: Tensor | None = None
    for number in reversed(range(len(maps))):
        kernel = weights[f"inner_blocks.{number}.0.weight"][:, :, 0, 0]
        merged = torch.einsum("oc,bchw->bohw", kernel, maps[number])
        merged += weights[f"inner_blocks.{number}.0.bias"][:, None, None]
        if coarser is not None:
            height, width = merged.shape[-2:]
            for y in range(height):
                for x in range(width):
                    there = (y * coarser.shape[-2] // height, x * coarser.shape[-1] // width)
                    merged[..., y, x] += coarser[..., there[0], there[1]]
        names = [f"layer_blocks.{number}.0.{kind}" for kind in ("weight", "bias")]
        levels.insert(0, conv2d(merged, *(weights[name] for name in names), padding=1))
        coarser = merged
    return [*levels, levels[-1][..., ::2, ::2]]


def test_the_levels_are_the_twins() -> None:
    pyramid = FeaturePyramid(CHANNELS, 6, extra_level=True).double()
    for parameter in pyramid.parameters():
        parameter.data = random(*parameter.shape, seed=parameter.numel(), dtype=torch.float64)
    maps = [
        random(2, channels, *size, dtype=torch.float64)
        for channels, size in zip(CHANNELS, ODD, strict=True)
    ]
    with torch.no_grad():
        expected, given = naive_levels(maps, pyramid.state_dict()), pyramid(maps)
    for level, wanted in zip(given, expected, strict=True):
        torch.testing.assert_close(level, wanted)


@pytest.mark.parametrize(
    ("name", "channels", "reductions", "size"),
    [
        ("resnet8+fpn", 64, [1, 2, 4], (32, 24)),
        ("resnet8+fpn", 64, [1, 2, 4], (33, 31)),
        ("resnet8+fpn24-extra", 24, [1, 2, 4, 8], (30, 45)),
        ("resnet50+fpn", 256, [4, 8, 16, 32], (64, 48)),
        ("resnet50+fpn", 256, [4, 8, 16, 32], (33, 31)),
    ],
)
def test_declarations_are_what_a_forward_pass_shows(
    name: str, channels: int, reductions: list[int], size: tuple[int, int]
) -> None:
    network = build_backbone(name, num_classes=7, in_channels=3, seed=0).eval()
    assert isinstance(network, PyramidClassifier)
    with torch.no_grad():
        taps = network.taps(random(2, 3, *size), MAPS)
    levels = [f"p{number + 2}" for number in range(len(reductions))]
    assert list(taps.maps) == list(taps.preactivations) == ["stem", *levels]
    assert network.stem == network.body.stem
    for tap, reduction in zip(network.stages, reductions, strict=True):
        sides = [-(-side // reduction) for side in size]
        assert (tap.reduction, tap.activation) == (reduction, "none")
        assert taps.maps[tap.name].shape == (2, tap.channels, *sides) == (2, channels, *sides)
        assert taps.preactivations[tap.name] is taps.maps[tap.name]
    means = [taps.maps[level].mean((2, 3)) for level in levels]
    assert torch.equal(taps.embedding, torch.cat(means, 1))
    assert torch.equal(taps.logits, network.fc(taps.embedding))
    assert taps.embedding.shape == (2, network.embedding_width)
    assert list(network.norms()) == ["stem"]

    probed = probe(name, num_classes=7, in_channels=3, image_size=size)
    assert probed.shapes.maps == {tap: tuple(x.shape[1:]) for tap, x in taps.maps.items()}
    assert list(probed.fresh_norms) == ["stem"]


def test_an_untouched_body_gives_the_stem_and_what_the_pyramid_reads() -> None:
    body = BACKBONES["resnet8"](3, 1).eval()
    images = random(2, 1, 14, 18)
    with torch.no_grad():
        alone = body.taps(images, MAPS)
        network = PyramidClassifier(body, width=8).eval()
        taps = network.taps(images, MAPS)
        levels = network.fpn([alone.maps[f"stage{number}"] for number in (1, 2, 3)])
    assert torch.equal(taps.maps["stem"], alone.maps["stem"])
    assert torch.equal(taps.preactivations["stem"], alone.preactivations["stem"])
    for number, level in enumerate(levels, start=2):
        assert torch.equal(taps.maps[f"p{number}"], level)


@pytest.mark.parametrize("name", ["resnet8+fpn", "mobilenetv2+fpn8-extra", "shufflenetv2+fpn"])
def test_every_weight_gets_a_gradient(name: str) -> None:
    network = build_backbone(name, num_classes=3, in_channels=1, seed=0)
    assert network.training
    network(random(4, 1, 32, 32)).square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_what_the_body_has_beyond_its_stages_is_gone() -> None:
    body = BACKBONES["mobilenetv2"](3, 1)
    body.auxiliary["stage1"] = nn.Linear(12, 3)
    body.add_module("second_name_of_fc", body.fc)
    beyond = ("body.fc", "body.last", "body.auxiliary", "body.second_name_of_fc")
    kept = [f"body.{name}" for name in body.state_dict()]
    kept = [name for name in kept if not name.startswith(beyond)]
    state = PyramidClassifier(body, width=8).state_dict()
    assert [name for name in state if name.startswith("body.")] == kept
    assert all(value.device.type == "cpu" for value in state.values())
    with torch.device("meta"), torch.no_grad():
        meta = PyramidClassifier(BACKBONES["mobilenetv2"](3, 1), width=8)
    assert list(meta.state_dict()) == list(state)


def test_pyramids_of_equal_width_distil_level_by_level() -> None:
    names = ("resnet8+fpn16", "resnet14+fpn16")
    shapes = [probe_shapes(n, num_classes=3, in_channels=1, image_size=(16, 16)) for n in names]
    pairs = equal_depth_pairs(*shapes)
    assert [str(pair) for pair in pairs] == ["p2:p2", "p3:p3", "p4:p4"]

    student, teacher = (build_backbone(n, num_classes=3, in_channels=1, seed=0) for n in names)
    images = random(4, 1, 16, 16)
    with torch.no_grad():
        targets = teacher.eval().taps(images, MAPS).maps
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        maps = student.taps(images, MAPS).maps
        loss = torch.stack(
            [fitnet_loss(maps[pair.student], targets[pair.teacher]) for pair in pairs]
        ).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    without = {name for name, weight in student.named_parameters() if weight.grad is None}
    assert without == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet20+fpn", 64), ("resnet8x4+fpn", 256), ("resnet20+fpn128", 128)],
)
def test_the_width_is_the_last_stages_up_to_256_unless_it_is_named(
    name: str, channels: int
) -> None:
    assert check_backbone(name) == name
    shapes = probe_shapes(name, num_classes=3, in_channels=1, image_size=(16, 16))
    assert shapes.network == name
    assert {shapes.maps[stage][0] for stage in shapes.stages} == {channels}


def test_names_of_an_unknown_body_are_refused_with_the_one_that_was_meant() -> None:
    for name in ("resnet5O+fpn", "resnet5O+fpn64-extra"):
        with pytest.raises(ValueError, match="unknown backbone 'resnet5O'; did you mean"):
            check_backbone(name)


@pytest.mark.parametrize(
    "suffix", ["", "fpm", "fpn0", "fpn064", "fpn-64", "fpnextra", "fpn+fpn", "FPN", "fpn8-extr"]
)
def test_other_suffixes_are_refused(suffix: str) -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet8\+.* must be 'fpn'"):
        check_backbone(f"resnet8+{suffix}")


def test_a_body_with_fewer_than_three_stages_is_refused() -> None:
    PyramidClassifier(resnet(3))
    with pytest.raises(ValueError, match="has 2 stages with maps, but must have at least 3"):
        PyramidClassifier(resnet(2))
