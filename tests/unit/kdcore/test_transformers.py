"""Vision transformers: tokens as maps, images of other sizes, weights for these, training."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer, create_model
from torch import Tensor, nn
from torchvision import models

from kdcore import DataConfig, Recipe, TeacherConfig, TrialConfig, distill
from kdcore.backbones.catalogue import build_backbone, constructor_of
from kdcore.backbones.foreign_weights import load_weights
from kdcore.backbones.libraries import LIBRARIES
from kdcore.backbones.parts import parts_of
from kdcore.backbones.positions import Positions, resample_positions
from kdcore.backbones.probe import probe_shapes
from kdcore.backbones.tracing.traced_network import TracedNetwork, trace_network
from kdcore.contract import plugged
from kdcore.contract.plugged import read_plugin
from kdcore.contract.taps import Tap
from kdcore.errors import NetworkError, WeightsError
from kdcore.networks.classifier import (
    Classifier,
    ClassifierCard,
    load_classifier,
    save_classifier,
)
from kdcore.networks.measurement import count_multiply_adds, count_network, count_parameters
from kdcore.teacher_cache.config import CacheConfig
from kdcore.training.checkpoint import read_checkpoint
from tests.cases import Case
from tests.own_code import TRANSFORMERS

VIT, DISTILLED = "timm/vit_tiny_patch16_224", "timm/deit_tiny_distilled_patch16_224"
MAPS = frozenset({Tap.MAPS, Tap.PREACTIVATIONS, Tap.CLASS_MAPS})


def random_images(images: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, 3, height, width, generator=generator)


# Tokens as maps


@torch.no_grad()
def test_maps_are_the_librarys_own_of_the_blocks_that_end_a_quarter() -> None:
    for name, size, blocks in (
        ("timm/test_vit", (48, 32), [1, 2, 4, 5]),  # a class token; any size
        ("timm/test_vit2", (32, 32), [1, 3, 5, 7]),  # a register; the mean of the patches
        (DISTILLED, (32, 48), [2, 5, 8, 11]),  # a class and a distillation token
    ):
        network = build_backbone(name, num_classes=5, in_channels=3, seed=0, image_size=size)
        library: Any = network.eval().get_submodule("network")
        for block in library.blocks:  # else hardly anything is added to the patches
            nn.init.normal_(block.mlp.fc2.bias, generator=torch.Generator().manual_seed(1))
        images = random_images(2, *size)
        taps = network.taps(images, MAPS)
        with Case(name):
            plain, normed = (
                library.forward_intermediates(images, blocks, norm=norm, intermediates_only=True)
                for norm in (False, True)
            )
            patches = library.patch_embed.proj(images)
            expected = [patches, *plain[:3], normed[3]]
            assert [tap.name for tap in network.declared] == list(taps.maps)
            assert list(taps.maps) == ["stem", "stage1", "stage2", "stage3", "stage4"]
            for given, wanted, tap in zip(
                taps.maps.values(), expected, network.declared, strict=True
            ):
                torch.testing.assert_close(given, wanted)
                assert (tap.channels, tap.reduction) == (wanted.shape[1], 16)
            torch.testing.assert_close(taps.logits, library(images))
            token = library.norm(library.forward_features(images))[:, 0]
            if name == "timm/test_vit":
                torch.testing.assert_close(taps.embedding, library.forward_features(images)[:, 0])
            assert taps.embedding.shape == token.shape
            assert taps.class_maps is None


def traced(network: nn.Module, side: int) -> TracedNetwork:
    with torch.device("meta"), torch.no_grad():
        return LIBRARIES["timm"].trace(network.to("meta"), 7, (side, side))


@torch.no_grad()
def test_a_mean_of_patches_without_a_norm_behind_has_class_maps_and_registers_have_no_part() -> (
    None
):
    def made() -> VisionTransformer:
        torch.manual_seed(0)
        return VisionTransformer(
            **{"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2},
            **{"class_token": False, "reg_tokens": 3, "global_pool": "avg", "fc_norm": False},
            num_classes=7,
        )

    network = made().eval()
    logits, embedding, pooled, heads, maps = traced(made(), 32).outputs[False](
        network, random_images(2, 32, 32)
    )
    assert heads is None
    assert len(maps) == 3  # two blocks are two stages
    assert pooled is not None
    assert pooled.shape == (2, 12, 4, 4)
    torch.testing.assert_close(pooled.mean((2, 3)), embedding)
    torch.testing.assert_close(network.head(embedding), logits)
    torch.testing.assert_close(maps[-1][1], pooled)


@torch.no_grad()
def test_maps_of_torchvisions_transformer_are_those_of_its_encoder() -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"image_size": 12, "patch_size": 4, "num_layers": 5, "num_heads": 2}
        return models.VisionTransformer(**sizes, hidden_dim=8, mlp_dim=8, num_classes=7)

    network: Any = made().eval()
    with torch.device("meta"):
        found = trace_network(made().to("meta"), 7, (12, 12))
    seen: list[Tensor] = []
    encoder = network.encoder
    for place in (network.conv_proj, *(encoder.layers[n] for n in (1, 2, 3)), encoder.ln):
        place.register_forward_hook(lambda *given: seen.append(given[2]))
    images = random_images(2, 12, 12)
    network(images)
    expected = [seen[0], *(each[:, 1:].transpose(1, 2).reshape(2, 8, 3, 3) for each in seen[1:])]
    for (_, given), wanted in zip(found.outputs[False](network, images)[-1], expected, strict=True):
        torch.testing.assert_close(given, wanted)
    assert found.positions == {"encoder.pos_embedding": Positions(1, (3, 3))}
    assert found.last_layer == "heads.head"


def test_its_parts_are_patches_quarters_of_blocks_and_both_heads() -> None:
    parts = parts_of(DISTILLED)
    assert parts.head == {
        f"network.{n}.{k}" for n in ("head", "head_dist") for k in ("weight", "bias")
    }
    assert parts.stages == ("stage1", "stage2", "stage3", "stage4")
    for name, stage in (
        ("patch_embed.proj.weight", 0),
        ("pos_embed", 1),
        ("dist_token", 1),
        ("blocks.2.attn.qkv.weight", 1),
        ("blocks.3.attn.qkv.weight", 2),
        ("blocks.11.mlp.fc2.bias", 4),
        ("norm.weight", 4),
    ):
        assert parts.stage_of[f"network.{name}"] == stage, name


def test_one_resolution_makes_no_pyramid() -> None:
    with pytest.raises(NetworkError, match="maps of one resolution, as those of transformers"):
        probe_shapes(f"{VIT}+fpn", num_classes=5, in_channels=3, image_size=(32, 32))


# Images of other sizes


def test_a_network_built_for_the_images_is_the_librarys() -> None:
    for name, size in ((VIT, (32, 32)), (DISTILLED, (16, 48))):
        with Case(f"{name} {size}"):
            ours = build_backbone(name, num_classes=5, in_channels=3, seed=3, image_size=size)
            torch.manual_seed(3)
            theirs = create_model(name.partition("/")[2], num_classes=5, img_size=size)
            assert ours.native_size == size
            expected = {f"network.{key}": value for key, value in theirs.state_dict().items()}
            assert expected.keys() == ours.state_dict().keys()
            for key, value in ours.state_dict().items():
                assert torch.equal(value, expected[key]), key
            ours.set_drop_path(0.1)  # its taps stay where they are
            given = ours.train().taps(random_images(2, *size), MAPS).maps["stage2"]
            assert given.shape == (2, 192, size[0] // 16, size[1] // 16)


def test_what_is_saved_and_counted_is_the_network_for_these_images(tmp_path: Path) -> None:
    size = (32, 48)
    made = build_backbone(DISTILLED, num_classes=5, in_channels=3, seed=0, image_size=size)
    card = ClassifierCard(
        backbone=DISTILLED,
        class_names=tuple("abcde"),
        in_channels=3,
        image_size=size,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    classifier = Classifier(made, card.mean, card.std).eval()
    save_classifier(tmp_path, "student", classifier, card)
    images = random_images(2, *size).clamp(0, 1)
    with torch.no_grad():
        assert torch.equal(load_classifier(tmp_path, "student")(images), classifier(images))
    counted = count_network(DISTILLED, num_classes=5, in_channels=3, image_size=size)
    assert counted == (count_parameters(made), count_multiply_adds(made, size))
    # 6 patches and 2 other tokens, 192 wide: the projections and the products of 12 blocks.
    tokens, width = 8, 192
    blocks = 12 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    patches = 6 * 3 * 16**2 * width
    assert counted[1] == blocks + patches + 2 * 5 * width


def test_a_size_that_a_network_cannot_be_built_for_is_refused_with_the_librarys_reason() -> None:
    for name, size, reason in (
        (VIT, (8, 8), "Kernel size can't be greater"),
        ("torchvision/vit_b_32", (48, 48), "indivisible by patch size"),
        ("torchvision/vit_b_32", (64, 32), "its images must be square"),
    ):
        message = f"images are {size[0]}x{size[1]}, which {name} does not take: .*{reason}"
        with Case(f"{name} {size}"), pytest.raises(NetworkError, match=message):
            probe_shapes(name, num_classes=5, in_channels=3, image_size=size)


# Weights for other images


def test_positions_are_resampled_as_timm_does_it() -> None:
    for before, grid, made in ((0, (14, 14), (2, 2)), (1, (3, 3), (5, 4)), (2, (7, 7), (7, 3))):
        with Case(f"{before} {grid} {made}"):
            given = torch.randn(1, before + grid[0] * grid[1], 6)
            expected = resample_abs_pos_embed(given, list(made), list(grid), before)
            assert torch.equal(resample_positions(given, grid, Positions(before, made)), expected)


def test_weights_of_other_images_fit_and_what_was_resampled_is_said() -> None:
    for name, before in ((DISTILLED, 2), ("timm/deit3_small_patch16_224", 0)):
        given = constructor_of(name)(5, 3).state_dict()
        network = constructor_of(name, (32, 48))(5, 3)
        fit = load_weights(network, given, source="weights", positions=network.positions)
        key = "network.pos_embed"
        expected = resample_abs_pos_embed(given[key], [2, 3], [14, 14], before)
        for path, value in network.state_dict().items():
            assert torch.equal(value, expected if path == key else given[path])
        total = len(given)
        assert str(fit) == (
            f"{total - 1} of {total} tensors kept, pos_embed resampled from 14x14 patches to 2x3"
        )
    odd = given | {key: torch.zeros(1, 15, 384)}
    with pytest.raises(WeightsError, match=r"of another shape \(pos_embed 1x15x384 inst"):
        load_weights(network, odd, source="weights", positions=network.positions)


# Training


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "tiny.py").write_text(TRANSFORMERS)
    plugged.use([read_plugin("tiny.py", tmp_path)])
    yield
    plugged.use([])


def trial(
    data: DataConfig, teacher: TeacherConfig, student: str, *terms: str, **others: Any
) -> TrialConfig:
    few = data.model_copy(update={"train_images": 64})
    recipe = Recipe(epochs=2, batch_size=32, acceleration="off")
    objective = [{"method": term} for term in terms]
    content = {"data": few, "teacher": teacher, "student": student, "training": recipe, **others}
    return TrialConfig.model_validate({**content, "objective": objective})


def test_a_distilled_transformer_resumes_to_the_bit(
    tiny: None,
    digits_config: DataConfig,
    teacher_config: TeacherConfig,
    workspace: Path,
    tmp_path: Path,
) -> None:
    config = trial(digits_config, teacher_config, "tiny_distilled_vit", "deit", "fitnet")
    results = []
    for folder, stops in (("whole", 0), ("cut", 1)):

        def start(folder: str = folder) -> Any:
            return distill(config, workspace=workspace, checkpoint_dir=tmp_path / folder)

        list(islice(start(), stops))
        last = list(start())[-1]
        state = read_checkpoint(tmp_path / folder, torch.device("cpu"))
        assert state is not None
        results.append((last.train_terms, last.heldout_loss, state["student"]))
    (terms, loss, weights), (terms_, loss_, weights_) = results
    assert (terms, loss) == (terms_, loss_)
    assert weights.keys() == weights_.keys()
    assert all(torch.equal(value, weights_[name]) for name, value in weights.items())


def test_a_cached_transformer_teaches_as_a_live_one(
    tiny: None, digits_config: DataConfig, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=1, batch_size=32, acceleration="off")
    teacher = TeacherConfig(backbone="tiny_vit", training=recipe)
    losses = []
    for cache in (None, CacheConfig(precision="float32")):
        config = trial(digits_config, teacher, "resnet8", "kd", "fitnet", "vkd", cache=cache)
        reports = list(distill(config, workspace=tmp_path))
        losses.append([report.train_loss for report in reports])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
