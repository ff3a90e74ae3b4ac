"""The frozen teacher: trained or imported once, and found again."""

import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.error import URLError

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from kdcore import DataConfig, Recipe, StudentConfig, TeacherConfig
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.libraries import published_weights, usual_normalization
from kdcore.data.image_data import ImageData, open_data
from kdcore.data.split import TableSplit
from kdcore.errors import WeightsError
from kdcore.networks.classifier import load_card
from kdcore.networks.initial_weights import build_student
from kdcore.teacher.teacher import is_ready, load_teacher, prepare_teacher, teacher_folder
from kdcore.training.evaluation import evaluate

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


def held_out_noughts(digits: ImageData) -> ImageData:
    """Who learns from all digits but noughts knows less of noughts after every epoch: the first is
    the best."""

    def part(split: TableSplit, chosen: torch.Tensor) -> TableSplit:
        return replace(
            split,
            images=split.images[chosen],
            labels=split.labels[chosen],
            image_ids=split.image_ids[chosen],
        )

    return replace(
        digits,
        train=part(digits.train, digits.train.labels != 0),
        heldout=part(digits.heldout, digits.heldout.labels == 0),
    )


def test_the_best_epochs_weights_teach_and_the_card_tells_their_accuracy(
    digits: ImageData, tmp_path: Path
) -> None:
    data = held_out_noughts(digits)
    reports = list(prepare_teacher(CONFIG, data, tmp_path, CPU))
    assert reports[-1].best_epoch == 1
    folder = teacher_folder(CONFIG, data, tmp_path)
    best = (reports[0].heldout_accuracy, reports[0].heldout_loss)
    assert evaluate(load_teacher(folder), data.heldout) == pytest.approx(best, rel=1e-5)
    assert best != (reports[-1].heldout_accuracy, reports[-1].heldout_loss)

    card = load_card(folder, "teacher")
    assert card.metrics == {
        "heldout_accuracy": best[0],
        "heldout_balanced_accuracy": best[0],  # of the one class
        "heldout_loss": best[1],
    }
    assert card.backbone == "resnet8"
    assert card.class_names == digits.class_names
    assert (card.in_channels, card.image_size) == (1, (8, 8))
    assert (card.mean, card.std) == (digits.mean, digits.std)
    assert TeacherConfig.model_validate(card.made_by) == CONFIG


def test_the_last_epochs_weights_teach_where_nothing_is_held_out(
    digits: ImageData, tmp_path: Path
) -> None:
    whole = digits.config.model_copy(update={"heldout_fraction": 0.0})
    data = replace(held_out_noughts(digits), config=whole)
    *_, last = prepare_teacher(CONFIG, data, tmp_path, CPU)
    assert last.best_epoch == 1
    accuracy, loss = evaluate(load_teacher(teacher_folder(CONFIG, data, tmp_path)), data.heldout)
    assert (accuracy, loss) == pytest.approx((last.heldout_accuracy, last.heldout_loss), rel=1e-5)


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
    assert ended.wait(120)
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
    metrics = load_card(teacher_dir, "teacher").metrics
    assert load_card(folder, "teacher").metrics == pytest.approx(metrics, rel=1e-5)


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
    with pytest.raises(WeightsError, match=f"weights file {path} "):
        list(prepare_teacher(config, digits, tmp_path, CPU))
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


# Published weights

LIBRARY_NETWORK = "torchvision/shufflenet_v2_x0_5"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where torchvision keeps fetched files; a network has two sets of weights for ten classes."""
    from torchvision import models
    from torchvision.transforms._presets import ImageClassification

    def made(name: str, **statistics: Any) -> models.Weights:
        preset = partial(ImageClassification, crop_size=224, **statistics)
        return models.Weights(
            f"https://host/{name}.pth", preset, {"categories": list("0123456789")}
        )

    class Digits(models.WeightsEnum):
        DIGITS_V1 = made("first-00000000", mean=(0.5,) * 3, std=(0.5,) * 3)
        DIGITS_V2 = made("second-00000000")
        DEFAULT = DIGITS_V2

    monkeypatch.setattr(models, "get_model_weights", lambda name: Digits)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def published_state() -> dict[str, torch.Tensor]:
    """A state dict as the library would publish it."""
    network = build_backbone(LIBRARY_NETWORK, num_classes=10, in_channels=3, seed=4)
    return network.get_submodule("network").state_dict()


@pytest.mark.parametrize(
    ("name", "file", "mean"),
    [
        ("DIGITS_V1", "first-00000000.pth", 0.5),
        ("DIGITS_V2", "second-00000000.pth", fmean(IMAGENET_MEAN)),
        ("DEFAULT", "second-00000000.pth", fmean(IMAGENET_MEAN)),
    ],
)
def test_published_weights_are_taken_from_where_the_library_keeps_them(
    name: str, file: str, mean: float, hub: Path, digits: ImageData, tmp_path: Path
) -> None:
    state = published_state()
    torch.save(state, hub / file)
    config = TeacherConfig(backbone=LIBRARY_NETWORK, weights=name)
    assert list(prepare_teacher(config, digits, tmp_path, CPU)) == []
    folder = teacher_folder(config, digits, tmp_path)
    assert folder.parent == tmp_path / "teachers"
    taught = weights_of(folder)
    assert taught.keys() == {f"network.{key}" for key in state}
    assert all(torch.equal(taught[f"network.{key}"], value) for key, value in state.items())
    card = load_card(folder, "teacher")
    assert card.mean == pytest.approx((mean,))  # gray: the average of three
    assert TeacherConfig.model_validate(card.made_by) == config
    assert load_teacher(folder)(digits.heldout.images[:2]).shape == (2, 10)


def test_a_student_begins_with_what_the_library_keeps(hub: Path, digits: ImageData) -> None:
    state = published_state()
    torch.save(state, hub / "second-00000000.pth")
    config = StudentConfig(backbone=LIBRARY_NETWORK, weights="DEFAULT")
    student = build_student(config, digits, seed=0)
    begins = student.backbone.state_dict()
    assert all(torch.equal(begins[f"network.{name}"], value) for name, value in state.items())
    assert student.normalization.mean == pytest.approx((fmean(IMAGENET_MEAN),))
    assert student.origin["weights"] == "DIGITS_V2"  # never the alias
    assert student.origin["source"] == "https://host/second-00000000.pth"


def test_an_alias_has_the_folder_of_the_weights_that_it_names(
    hub: Path, digits: ImageData, tmp_path: Path
) -> None:
    first, second, alias = (
        teacher_folder(TeacherConfig(backbone=LIBRARY_NETWORK, weights=name), digits, tmp_path)
        for name in ("DIGITS_V1", "DIGITS_V2", "DEFAULT")
    )
    assert first != second == alias


def test_weights_out_of_reach_are_refused_with_their_address_and_their_place(
    hub: Path, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    config = TeacherConfig(backbone=LIBRARY_NETWORK, weights="DIGITS_V1")
    with pytest.raises(ValueError, match=r"no route to host") as caught:
        list(prepare_teacher(config, digits, tmp_path, CPU))
    assert "could not be fetched from https://host/first-00000000.pth" in str(caught.value)
    assert f"put the file at {hub / 'first-00000000.pth'}" in str(caught.value)
    assert not is_ready(teacher_folder(config, digits, tmp_path))


def test_code_in_published_weights_is_refused_and_not_run(
    hub: Path, digits: ImageData, tmp_path: Path
) -> None:
    torch.save({"fc.bias": _Code(tmp_path / "ran")}, hub / "first-00000000.pth")
    config = TeacherConfig(backbone=LIBRARY_NETWORK, weights="DIGITS_V1")
    with pytest.raises(ValueError, match="cannot be read"):
        list(prepare_teacher(config, digits, tmp_path, CPU))
    assert not (tmp_path / "ran").exists()


def test_timms_weights_out_of_reach_are_refused_with_the_way_out(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    build, asked = timm.create_model, []

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if not pretrained:
            return build(name, **options)
        asked.append((name, os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]))
        raise OSError("no route to host.")

    monkeypatch.setattr(timm, "create_model", offline)
    data = replace(digits, class_names=tuple(map(str, range(1000))))
    config = TeacherConfig(backbone="timm/test_resnet", weights="r160_in1k")
    with pytest.raises(ValueError, match="no route to host") as caught:
        list(prepare_teacher(config, data, tmp_path, CPU))
    assert "from https://huggingface.co/timm/test_resnet.r160_in1k" in str(caught.value)
    assert "weights: /path/to/model.safetensors" in str(caught.value)
    assert asked == [("test_resnet.r160_in1k", "1")]
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize(
    ("backbone", "weights"),
    [("torchvision/resnet18", "IMAGENET1K_V1"), ("timm/test_resnet", "pretrained")],
)
def test_published_weights_of_other_classes_are_refused_before_they_are_fetched(
    backbone: str, weights: str, digits: ImageData, tmp_path: Path
) -> None:
    config = TeacherConfig(backbone=backbone, weights=weights)
    with pytest.raises(ValueError, match=r"has 1000 classes, but the data has 10; add training"):
        teacher_folder(config, digits, tmp_path)


# Normalisation


def test_a_librarys_network_with_a_file_has_the_librarys_normalisation(
    digits: ImageData, tmp_path: Path
) -> None:
    save_file(published_state(), tmp_path / "weights.safetensors")
    config = TeacherConfig(backbone=LIBRARY_NETWORK, weights=tmp_path / "weights.safetensors")
    list(prepare_teacher(config, digits, tmp_path, CPU))
    card = load_card(teacher_folder(config, digits, tmp_path), "teacher")
    assert card.mean == pytest.approx((fmean(IMAGENET_MEAN),))
    assert card.std == pytest.approx((fmean(IMAGENET_STD),))


def test_a_networks_own_change_of_its_input_is_part_of_the_normalisation() -> None:
    # torchvision's Inception takes ImageNet's normalisation and turns it into that of 0.5.
    mean, std = (torch.tensor(given).view(1, 3, 1, 1) for given in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.device("meta"):
        from torchvision.models import googlenet

        network = googlenet(transform_input=True, init_weights=True, aux_logits=False)
    images = torch.rand(2, 3, 4, 4)
    expected = network._transform_input((images - mean) / std)
    found = published_weights("torchvision/googlenet", "DEFAULT").normalization
    assert found == usual_normalization("torchvision/googlenet") == ((0.5,) * 3, (0.5,) * 3)
    assert torch.allclose((images - 0.5) / 0.5, expected, atol=1e-6)


@pytest.mark.parametrize("origin", ["weights", "training"])
def test_a_given_mean_goes_before_all_others_and_gives_another_folder(
    origin: str, teacher_dir: Path, digits: ImageData, tmp_path: Path
) -> None:
    short = RECIPE.model_copy(update={"epochs": 1})
    given: dict[str, Any] = {
        "weights": {"weights": saved(teacher_dir, tmp_path / "weights.pt")},
        "training": {"training": short},
    }[origin]
    usual = TeacherConfig(backbone="resnet14", **given)
    config = TeacherConfig(backbone="resnet14", mean=(0.25,), std=(0.5,), **given)
    folder = teacher_folder(config, digits, tmp_path)
    assert folder != teacher_folder(usual, digits, tmp_path)
    list(prepare_teacher(config, digits, tmp_path, CPU))
    card = load_card(folder, "teacher")
    assert (card.mean, card.std) == ((0.25,), (0.5,))
    teacher = load_teacher(folder)
    evaluated = evaluate(teacher, digits.heldout)
    metrics = (card.metrics["heldout_accuracy"], card.metrics["heldout_loss"])
    assert metrics == pytest.approx(evaluated, rel=1e-5)


def test_a_mean_for_other_channels_is_refused(digits: ImageData, tmp_path: Path) -> None:
    config = TeacherConfig(backbone="resnet8", training=RECIPE, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ValueError, match="have 3 numbers, but the images have 1 channels"):
        teacher_folder(config, digits, tmp_path)


# Configuration


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({}, "needs weights, training or both, but neither is given"),
        (
            {"training": {"epochs": 1, "frozen_stages": 1}},
            "training.frozen_stages is 1, but teacher resnet8 begins with fresh weights",
        ),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"epochs": 1}, "seed": -1}, "seed"),
        ({"training": {"epochs": 1}, "sead": 1}, "sead"),
        ({"weights": 5}, "weights is 5, but must be a file or a name"),
        (
            {"weights": "w.pt", "mean": [0.5]},
            "mean has 1 numbers and std 0, but both need one per channel",
        ),
        ({"weights": "w.pt", "mean": [123.7], "std": [58.4]}, "mean.0"),
        ({"weights": "w.pt", "mean": [0.5], "std": [0]}, "std.0"),
    ],
    ids=[
        "neither",
        "nothing to freeze",
        "epochs",
        "seed",
        "unknown",
        "number",
        "mean alone",
        "scale",
        "deviation",
    ],
)
def test_a_teacher_whose_origin_cannot_be_is_refused(
    origin: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherConfig.model_validate({"backbone": "resnet8"} | origin)


def test_an_unknown_teacher_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ValidationError, match="unknown backbone 'resnet9'; did you mean 'resnet"):
        TeacherConfig.model_validate({"backbone": "resnet9", "training": {"epochs": 1}})


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        ("torchvision/resnet50", ["IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT"]),
        ("timm/resnet18", ["a1_in1k", "pretrained", "DEFAULT"]),
    ],
)
def test_a_name_of_published_weights_stays_a_name(backbone: str, names: list[str]) -> None:
    for name in names:
        config = TeacherConfig.model_validate({"backbone": backbone, "weights": name})
        assert config.weights == name
        assert isinstance(config.weights, str)
        assert TeacherConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("given", ["w.pt", "runs/w", "~/w.safetensors", "/w", "IMAGENET1K_V2.pth"])
def test_a_file_is_the_same_in_every_process(given: str) -> None:
    config = TeacherConfig(backbone="torchvision/resnet50", weights=given)
    assert config.weights == Path(given).expanduser().absolute()
    assert TeacherConfig.model_validate_json(config.model_dump_json()) == config


def test_a_word_that_is_a_file_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    config = TeacherConfig(backbone="torchvision/resnet50", weights="mine")
    assert config.weights == tmp_path / "mine"


def test_unknown_weights_are_refused_with_those_that_there_are() -> None:
    # The configuration takes the name as it is: only the library knows its weights.
    config = TeacherConfig(backbone="torchvision/resnet50", weights="IMAGENET1K_V3")
    with pytest.raises(WeightsError) as caught:
        published_weights(config.backbone, str(config.weights))
    assert (
        "weights is 'IMAGENET1K_V3', but torchvision/resnet50 has no such weights; did you mean "
        "'IMAGENET1K_V2'? There are IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"
    ) in str(caught.value)
