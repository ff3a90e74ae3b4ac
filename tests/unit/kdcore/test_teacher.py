"""The frozen teacher: trained or imported once, and found again."""

import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from kdcore import DataConfig, Recipe, TeacherConfig
from kdcore.backbones import build_backbone
from kdcore.classifier import load_card
from kdcore.data import ImageData, TableSplit, open_data
from kdcore.teacher import is_ready, load_teacher, prepare_teacher, teacher_folder
from kdcore.training import evaluate

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=3, batch_size=64, acceleration="off")
CONFIG = TeacherConfig(backbone="resnet8", training=RECIPE)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "teacher.safetensors")


# Training


def test_a_teacher_is_trained_once(digits: ImageData, tmp_path: Path) -> None:
    folder = teacher_folder(CONFIG, digits, tmp_path)
    assert not is_ready(folder)
    reports = list(prepare_teacher(CONFIG, digits, tmp_path, CPU))
    assert [report.epoch for report in reports] == [1, 2, 3]
    assert all(list(report.train_terms) == ["cross_entropy"] for report in reports)
    assert is_ready(folder)
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(made) == ["teacher.json", "teacher.safetensors"]
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]

    assert list(prepare_teacher(CONFIG, digits, tmp_path, CPU)) == []
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made


def test_the_best_epochs_weights_teach_and_the_card_tells_their_accuracy(
    digits: ImageData, tmp_path: Path
) -> None:
    # Who learns from all digits but noughts knows less of noughts after every epoch: the first is
    # the best.
    def part(split: TableSplit, chosen: torch.Tensor) -> TableSplit:
        return replace(
            split,
            images=split.images[chosen],
            labels=split.labels[chosen],
            image_ids=split.image_ids[chosen],
        )

    data = replace(
        digits,
        train=part(digits.train, digits.train.labels != 0),
        heldout=part(digits.heldout, digits.heldout.labels == 0),
    )
    reports = list(prepare_teacher(CONFIG, data, tmp_path, CPU))
    assert reports[-1].best_epoch == 1
    folder = teacher_folder(CONFIG, data, tmp_path)
    best = (reports[0].heldout_accuracy, reports[0].heldout_loss)
    assert evaluate(load_teacher(folder), data.heldout) == best
    assert best != (reports[-1].heldout_accuracy, reports[-1].heldout_loss)

    card = load_card(folder, "teacher")
    assert card.metrics == {"heldout_accuracy": best[0], "heldout_loss": best[1]}
    assert card.backbone == "resnet8"
    assert card.class_names == digits.class_names
    assert (card.in_channels, card.image_size) == (1, (8, 8))
    assert (card.mean, card.std) == (digits.mean, digits.std)
    assert TeacherConfig.model_validate(card.made_by) == CONFIG


def test_a_loaded_teacher_is_frozen(teacher_dir: Path, digits: ImageData) -> None:
    teacher = load_teacher(teacher_dir)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(digits.heldout.images[:4]).requires_grad


def test_another_origin_or_split_gives_another_folder(digits: ImageData, workspace: Path) -> None:
    folders = {
        teacher_folder(config, digits, workspace)
        for config in (
            CONFIG,
            CONFIG.model_copy(update={"seed": 1}),
            CONFIG.model_copy(update={"backbone": "resnet14"}),
            CONFIG.model_copy(update={"training": RECIPE.model_copy(update={"epochs": 9})}),
        )
    }
    for change in ({"split_seed": 1}, {"heldout_fraction": 0.3}, {"train_images": 300}):
        data = open_data(digits.config.model_copy(update=change), workspace)
        folders.add(teacher_folder(CONFIG, data, workspace))
    folders.add(teacher_folder(CONFIG, replace(digits, digest="other"), workspace))
    assert len(folders) == 8
    assert all(folder.parent == workspace / "teachers" for folder in folders)


def test_the_same_images_in_another_place_have_the_same_teacher(
    digits: ImageData, workspace: Path
) -> None:
    moved = DataConfig.model_validate(digits.config.model_dump() | {"root": "/data"})
    folder = teacher_folder(CONFIG, replace(digits, config=moved), workspace)
    assert folder == teacher_folder(CONFIG, digits, workspace)


def test_an_interrupted_training_goes_on_to_the_same_teacher(
    digits: ImageData, tmp_path: Path
) -> None:
    expected = list(prepare_teacher(CONFIG, digits, tmp_path / "whole", CPU))
    started = prepare_teacher(CONFIG, digits, tmp_path / "parts", CPU)
    first = next(started)
    started.close()  # type: ignore[attr-defined]
    folder = teacher_folder(CONFIG, digits, tmp_path / "parts")
    assert not is_ready(folder)
    torch.manual_seed(99)
    reports = [first, *prepare_teacher(CONFIG, digits, tmp_path / "parts", CPU)]
    assert [replace(report, epoch_seconds=0) for report in reports] == [
        replace(report, epoch_seconds=0) for report in expected
    ]
    whole = weights_of(teacher_folder(CONFIG, digits, tmp_path / "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in weights_of(folder).items())


def test_who_comes_second_waits_for_the_first(digits: ImageData, tmp_path: Path) -> None:
    first = prepare_teacher(CONFIG, digits, tmp_path, CPU)
    next(first)
    reports: list[object] = []
    ended = threading.Event()

    def second() -> None:
        reports.extend(prepare_teacher(CONFIG, digits, tmp_path, CPU))
        ended.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not ended.wait(0.2)
    assert len(list(first)) == 2
    assert ended.wait(60)
    thread.join()
    assert reports == []


# Weights from a file


def saved(teacher_dir: Path, path: Path) -> Path:
    """The trained teacher's weights in another file, in the form that its name tells."""
    if path.suffix == ".safetensors":
        save_file(weights_of(teacher_dir), path)
    else:
        torch.save(weights_of(teacher_dir), path)
    return path


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pth", "weights"])
def test_weights_from_a_file_keep_their_accuracy(
    name: str, teacher_dir: Path, digits: ImageData, tmp_path: Path
) -> None:
    config = TeacherConfig(backbone="resnet14", weights=saved(teacher_dir, tmp_path / name))
    assert list(prepare_teacher(config, digits, tmp_path, CPU)) == []
    folder = teacher_folder(config, digits, tmp_path)
    original = weights_of(teacher_dir)
    assert all(torch.equal(value, original[key]) for key, value in weights_of(folder).items())
    assert load_card(folder, "teacher").metrics == load_card(teacher_dir, "teacher").metrics


def test_the_folder_follows_the_content_of_the_file_and_not_its_name(
    teacher_dir: Path, digits: ImageData, tmp_path: Path
) -> None:
    one = saved(teacher_dir, tmp_path / "one.safetensors")
    two = saved(teacher_dir, tmp_path / "two.safetensors")
    configs = [TeacherConfig(backbone="resnet14", weights=path) for path in (one, two)]
    first, second = (teacher_folder(config, digits, tmp_path) for config in configs)
    assert first == second
    weights = weights_of(teacher_dir)
    weights["fc.bias"] = weights["fc.bias"] + 1
    save_file(weights, two)
    assert teacher_folder(configs[1], digits, tmp_path) != first


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("<html>404 not found</html>\n")


def _of_another_network(path: Path) -> None:
    state = build_backbone("resnet20", num_classes=10, in_channels=1, seed=0).state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def _of_other_classes(path: Path) -> None:
    state = build_backbone("resnet14", num_classes=100, in_channels=1, seed=0).state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def _nothing(path: Path) -> None:
    save_file({}, path) if path.suffix == ".safetensors" else torch.save({}, path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize(
    "damage",
    [_truncated, _empty, _text, _of_another_network, _of_other_classes, _nothing],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_weights_that_cannot_be_used_are_refused_with_the_name_of_the_file(
    damage: Callable[[Path], None],
    name: str,
    teacher_dir: Path,
    digits: ImageData,
    tmp_path: Path,
) -> None:
    path = saved(teacher_dir, tmp_path / name)
    damage(path)
    config = TeacherConfig(backbone="resnet14", weights=path)
    with pytest.raises(ValueError, match=f"weights file {path} ") as caught:
        list(prepare_teacher(config, digits, tmp_path, CPU))
    assert type(caught.value) is ValueError
    assert not is_ready(teacher_folder(config, digits, tmp_path))


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"state_dict": {}}, 7], ids=repr)
def test_a_file_that_holds_no_state_dict_is_refused(
    content: object, digits: ImageData, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    config = TeacherConfig(backbone="resnet14", weights=path)
    with pytest.raises(ValueError, match=f"weights file {path} does not fit"):
        list(prepare_teacher(config, digits, tmp_path, CPU))


def test_missing_weights_are_refused_with_their_name(digits: ImageData, tmp_path: Path) -> None:
    config = TeacherConfig(backbone="resnet14", weights=tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match=r"weights is '.*nowhere\.pt', but there is no such file"):
        list(prepare_teacher(config, digits, tmp_path, CPU))


class _Code:
    """An object whose unpickling runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_weights_file_is_refused_and_not_run(
    writer: str, digits: ImageData, tmp_path: Path
) -> None:
    path, content = tmp_path / "weights.pt", {"fc.bias": _Code(tmp_path / "ran")}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))  # PyTorch warns of later ones
    config = TeacherConfig(backbone="resnet14", weights=path)
    with pytest.raises(ValueError, match=f"weights file {path} cannot be read"):
        list(prepare_teacher(config, digits, tmp_path, CPU))
    assert not (tmp_path / "ran").exists()


# Configuration


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({}, "of weights and training neither is given"),
        ({"weights": "w.pt", "training": {"epochs": 1}}, "of weights and training both is given"),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"epochs": 1}, "seed": -1}, "seed"),
        ({"training": {"epochs": 1}, "sead": 1}, "sead"),
    ],
    ids=["neither", "both", "epochs", "seed", "unknown"],
)
def test_a_teacher_without_exactly_one_origin_is_refused(
    origin: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherConfig.model_validate({"backbone": "resnet8"} | origin)


def test_an_unknown_teacher_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ValidationError, match="unknown backbone 'resnet9'; did you mean 'resnet"):
        TeacherConfig.model_validate({"backbone": "resnet9", "training": {"epochs": 1}})
