"""A classifier on disk: weights without code, and a card that says what they are."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from kdcore import Classifier, load_student
from kdcore.backbones.catalogue import build_backbone
from kdcore.contract.taps import Tap
from kdcore.networks.classifier import ClassifierCard, load_card, load_classifier, save_classifier

MEAN, STD = (0.48, 0.45, 0.41), (0.23, 0.22, 0.27)
CARD = ClassifierCard(
    backbone="resnet8",
    class_names=("cat", "dog", "bird"),
    in_channels=3,
    image_size=(12, 10),
    mean=MEAN,
    std=STD,
    metrics={"heldout_accuracy": 0.75},
    made_by={"seed": 3, "objective": [{"method": "x", "params": {"weight": 0.5}}]},
)


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 12, 10), generator=generator).to(torch.uint8)


@pytest.fixture
def classifier() -> Classifier:
    network = build_backbone("resnet8", num_classes=3, in_channels=3, seed=1)
    classifier = Classifier(network, MEAN, STD)
    with torch.no_grad():
        classifier(images(64))  # statistics that a fresh network does not have
    return classifier.eval()


@pytest.fixture
def folder(classifier: Classifier, tmp_path: Path) -> Path:
    """An exported student."""
    folder = tmp_path / "made" / "student"
    save_classifier(folder, "student", classifier, CARD)
    return folder


# From images to logits


def test_normalisation_is_by_channel_on_the_scale_from_0_to_1(classifier: Classifier) -> None:
    given = images()
    normalised = classifier.normalize(given)
    for channel in range(3):
        expected = (given[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        assert torch.allclose(normalised[:, channel].double(), expected, atol=1e-6)


def test_bytes_and_floats_from_0_to_1_give_the_same_logits(classifier: Classifier) -> None:
    assert torch.equal(classifier(images()), classifier(images().float() / 255))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_floats_of_any_precision_are_classified(classifier: Classifier, dtype: torch.dtype) -> None:
    logits = classifier((images().double() / 255).to(dtype))
    assert logits.dtype == torch.float32
    exact = {torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
    assert (logits - classifier(images())).abs().max() < exact


def test_taps_are_those_of_the_network_behind_the_normalisation(classifier: Classifier) -> None:
    taps = classifier.taps(images(), frozenset({Tap.MAPS}), torch.zeros(len(images())).long())
    assert torch.equal(taps.logits, classifier(images()))
    assert torch.equal(taps.logits, classifier.backbone(classifier.normalize(images())))
    assert "stage1" in taps.maps


# On disk


def test_a_student_comes_back_with_identical_logits(classifier: Classifier, folder: Path) -> None:
    student = load_student(folder)
    assert not student.training
    assert torch.equal(student(images()), classifier(images()))
    assert torch.equal(student(images().float() / 255), classifier(images().float() / 255))
    assert torch.equal(load_student(str(folder))(images()), classifier(images()))


def test_a_student_is_saved_wherever_it_was_trained(classifier: Classifier, folder: Path) -> None:
    expected = classifier(images())
    save_classifier(folder, "student", classifier.to(memory_format=torch.channels_last), CARD)
    assert torch.allclose(load_student(folder)(images()), expected, atol=1e-5)


def test_a_folder_holds_weights_and_card_and_nothing_else(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "student.json",
        "student.safetensors",
    ]
    network = build_backbone("resnet8", num_classes=3, in_channels=3, seed=0)
    with safe_open(folder / "student.safetensors", "pt") as weights:
        assert sorted(weights.keys()) == sorted(network.state_dict())


def test_whoever_may_read_the_folders_other_files_may_read_the_weights(
    classifier: Classifier, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        save_classifier(tmp_path, "student", classifier, CARD)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_a_card_comes_back_field_by_field(folder: Path) -> None:
    assert load_card(folder, "student") == CARD
    assert json.loads((folder / "student.json").read_text()) == {
        "backbone": "resnet8",
        "class_names": ["cat", "dog", "bird"],
        "in_channels": 3,
        "image_size": [12, 10],
        "mean": list(MEAN),
        "std": list(STD),
        "metrics": {"heldout_accuracy": 0.75},
        "made_by": {"seed": 3, "objective": [{"method": "x", "params": {"weight": 0.5}}]},
        "start": {},
    }


def test_saving_again_replaces_and_roles_stand_side_by_side(
    classifier: Classifier, folder: Path
) -> None:
    with torch.no_grad():
        classifier.backbone.fc.bias += 1
    save_classifier(folder, "student", classifier, CARD.model_copy(update={"metrics": {}}))
    save_classifier(folder, "teacher", classifier, CARD)
    assert torch.equal(load_student(folder)(images()), classifier(images()))
    assert load_card(folder, "student").metrics == {}
    assert load_card(folder, "teacher").metrics == CARD.metrics
    assert len(list(folder.iterdir())) == 4


# Damage


@pytest.mark.parametrize("name", ["student.json", "student.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_student(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_student(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"backbone": "resnet8"}', b"\xff\xfe\x00garbage"],
    ids=["empty", "half", "list", "null", "fields missing", "bytes"],
)
def test_a_damaged_card_is_refused_with_its_name(content: bytes, folder: Path) -> None:
    (folder / "student.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{folder / 'student.json'} is damaged"):
        load_student(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "resnet9"}, "unknown backbone 'resnet9'; did you mean"),
        ({"backbone": "resnet20"}, "student.safetensors does not fit resnet20"),
        ({"class_names": ["cat", "dog"]}, "student.safetensors does not fit resnet8"),
        ({"class_names": ["cat"]}, "student.json is damaged: class_names"),
        ({"in_channels": 1}, "student"),
        ({"in_channels": 0}, "student.json is damaged: in_channels"),
        ({"mean": [0.5]}, "student.json"),
        ({"std": [0.2, 0.2]}, "student.json"),
        ({"std": [0.2, 0.0, 0.2]}, "student.json"),
        ({"mean": [0.5, "x", 0.5]}, "student.json is damaged: mean.1"),
        ({"comment": "mine"}, "student.json is damaged: comment"),
    ],
    ids=str,
)
def test_a_card_that_does_not_fit_its_weights_or_itself_is_refused(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    path = folder / "student.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_student(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused_with_their_name(share: float, folder: Path) -> None:
    path = folder / "student.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"{path} does not fit resnet8"):
        load_student(folder)


def test_weights_of_another_network_are_refused_with_their_name(
    folder: Path, tmp_path: Path
) -> None:
    other = Classifier(build_backbone("resnet14", num_classes=3, in_channels=3, seed=0), MEAN, STD)
    save_classifier(tmp_path / "other", "student", other, CARD)
    shutil.copy(tmp_path / "other" / "student.safetensors", folder / "student.safetensors")
    with pytest.raises(ValueError, match=r"student\.safetensors does not fit resnet8"):
        load_classifier(folder, "student")
