"""How evaluation crops images: the pixels of torchvision and timm, and what depends on them."""

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from timm.data import create_transform
from torchvision.transforms.v2 import InterpolationMode, functional

from kdcore import DataConfig, Recipe, TeacherConfig, TrialConfig
from kdcore.data.arrow_files import key_of
from kdcore.data.centre_crop import USUAL_CROP, CentreCrop
from kdcore.data.decoding import centre_crop
from kdcore.data.image_data import ImageData, open_data
from kdcore.networks.classifier import (
    ClassifierCard,
    build_classifier,
    describe_classifier,
    load_card,
    save_classifier,
)
from kdcore.teacher.teacher import teacher_folder
from tests.cases import Case
from tests.unit.kdcore.photographs import rows_of, write_folders, write_parquet

SHARES = (0.7, 0.875, 0.9, 224 / 232, 1.0)
SIZES = ((375, 500), (333, 200), (64, 64), (41, 300), (20, 17), (63, 1))
KINDS = ("bilinear", "bicubic")


def noise(size: tuple[int, int], levels: int) -> np.ndarray:
    """The hardest pixels: each of its own, of so many levels from 0 to 255."""
    drawn = np.random.default_rng(0).integers(0, levels, (*size, 3))
    return (drawn * 255 // (levels - 1)).astype(np.uint8)


def resizes_bytes(kind: str) -> bool:
    """Whether torchvision surely resizes bytes as such on this processor, and not as floats."""
    return kind == "bicubic" or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_is_torchvisions_to_the_bit(kind: str) -> None:
    for share in SHARES:
        crop = CentreCrop.model_validate({"crop_share": share, "interpolation": kind})
        for side, size in ((31, SIZES[0]), (48, SIZES[1]), *((64, size) for size in SIZES)):
            with Case(kind, share, side, size):
                pixels = torch.from_numpy(noise(size, 256)).permute(2, 0, 1)
                resized = functional.resize(
                    pixels,
                    [crop.covered(side)],
                    interpolation=InterpolationMode(kind),
                    antialias=True,
                )
                expected = functional.center_crop(resized, [side, side])
                image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
                shown = centre_crop(image, (side, side), crop)
                assert shown.shape == expected.shape
                difference = int((shown.int() - expected.int()).abs().max())
                assert difference <= (0 if resizes_bytes(kind) else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_is_timms_but_for_the_rounding_of_both_passes(kind: str) -> None:
    """Pillow, which timm resizes with, and PyTorch round after each of two passes, to within half a
    level of the same number: they differ by 1 after the first. The second multiplies that by the
    sum of the weights' magnitudes, at most 1.25 of bicubic ones, and rounds again: by 2.25."""
    for share in SHARES:
        crop = CentreCrop.model_validate({"crop_share": share, "interpolation": kind})
        for side, size in ((28, SIZES[0]), (56, SIZES[1]), *((64, size) for size in SIZES)):
            assert crop.covered(side) == math.floor(side / share), "else choose other sides"
            transform = create_transform(
                input_size=(3, side, side), crop_pct=share, interpolation=kind, normalize=False
            )
            for levels in (2, 256):
                with Case(kind, share, side, size, levels):
                    image = Image.fromarray(noise(size, levels))
                    theirs: Any = transform(image)
                    ours = centre_crop(image, (side, side), crop)
                    assert ours.shape == theirs.shape
                    assert int((ours.int() - theirs.int()).abs().max()) <= 2


def test_a_crop_that_is_not_square_covers_both_sides() -> None:
    columns = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1))).convert("RGB")
    crop = CentreCrop(crop_share=0.7, interpolation="bicubic")
    shown = centre_crop(columns, (28, 84), crop)
    # 100x200 becomes 60x120, of which the columns 18 to 101 are shown.
    expected = (torch.arange(84) + 18.5) * 200 / 120 - 0.5
    assert (shown[0, 0] - expected).abs().max() <= 1
    turned = columns.transpose(Image.Transpose.TRANSPOSE)
    assert torch.equal(centre_crop(turned, (84, 28), crop), shown.transpose(1, 2))


def test_the_usual_share_rounds_as_ever_and_others_down() -> None:
    usual = CentreCrop(crop_share=0.875, interpolation="bicubic")
    for side in range(1, 600):
        assert usual.covered(side) == round(side * 256 / 224)
        for larger in (side, side + 1, side + side // 3):
            crop = CentreCrop(crop_share=side / larger)
            if crop.crop_share != 0.875:
                assert crop.covered(side) == larger, "whatever the quotient was rounded to"
    assert CentreCrop(crop_share=0.95).covered(224) == 235


# What is configured


PHOTOGRAPHS: dict[str, Any] = {"name": "image_folder", "root": "/photographs"}


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [
        ({"evaluation": {"crop_share": 0}}, ("evaluation", "crop_share"), "greater than 0"),
        ({"evaluation": {"crop_share": 1.01}}, ("evaluation", "crop_share"), "less than or equal"),
        (
            {"evaluation": {"crop_share": float("nan")}},
            ("evaluation", "crop_share"),
            "should be less",
        ),
        (
            {"evaluation": {"interpolation": "lanczos"}},
            ("evaluation", "interpolation"),
            "'bilinear' or 'bicubic'",
        ),
        ({"evaluation": {"crop_pct": 0.9}}, ("evaluation", "crop_pct"), "Extra inputs are not"),
        (
            {"evaluation": "weight"},
            ("evaluation",),
            r"is 'weight', but must be numbers, like \{crop_share: 0.875, interpolation: "
            r"bilinear\}, or 'weights'; did you mean 'weights'\?",
        ),
        ({"evaluation": 0.9}, ("evaluation",), r"is 0.9, but must be numbers, like .*'weights' \["),
        (
            {"evaluation": {}, "augmentation": "pad_crop"},
            (),
            r"evaluation is \{crop_share: 0.875, .*\}, but augmentation is pad_crop, which takes",
        ),
        (
            {"evaluation": "weights", "augmentation": ["flip"]},
            (),
            "evaluation is weights, but augmentation is a list of steps, which takes images as",
        ),
        (
            {"evaluation": "weights", "name": "tiny_imagenet"},
            (),
            "evaluation is weights, but augmentation is pad_crop, which takes images as they are",
        ),
        (
            {"evaluation": {}, "name": "cifar10"},
            (),
            r"evaluation is \{crop_share.*\}, but cifar10 has no such setting; leave it out",
        ),
    ],
)
def test_a_mistake_has_one_clear_message(
    changes: dict[str, Any], place: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        DataConfig.model_validate(PHOTOGRAPHS | changes)
    (error,) = caught.value.errors()
    assert error["loc"] == place


def test_it_is_written_as_it_is_read_and_the_usual_one_not_at_all() -> None:
    for usual in (None, {}, {"crop_share": 0.875}, {"interpolation": "bilinear"}, USUAL_CROP):
        config = DataConfig.model_validate(PHOTOGRAPHS | {"evaluation": usual})
        assert "evaluation" not in config.model_dump(mode="json")
        assert config.centre_crop == USUAL_CROP
    streamed = {"name": "tiny_imagenet", "augmentation": "resized_crop"}
    for data in (PHOTOGRAPHS, PHOTOGRAPHS | {"name": "imagenet"}, PHOTOGRAPHS | streamed):
        for said in ({"crop_share": 224 / 232}, {"interpolation": "bicubic"}):
            config = DataConfig.model_validate(data | {"evaluation": said})
            written = config.model_dump(mode="json")
            assert written["evaluation"].items() >= said.items()
            assert DataConfig.model_validate(written) == config
            assert DataConfig.model_validate_json(config.model_dump_json()) == config
    word = DataConfig.model_validate(PHOTOGRAPHS | {"evaluation": "weights"})
    assert word.model_dump(mode="json")["evaluation"] == "weights"
    assert word.image_size is None, "which is the weights' too"
    assert DataConfig.model_validate(word.model_dump(mode="json")) == word


def test_images_that_are_shown_as_they_are_have_none() -> None:
    for content in ({"name": "digits"}, {"name": "cifar10", "augmentation": "imagenet"}):
        assert DataConfig.model_validate(content).centre_crop is None
    table = DataConfig.model_validate(PHOTOGRAPHS | {"augmentation": "pad_crop"})
    assert table.centre_crop is None


# What depends on it


CROP = {"crop_share": 0.6, "interpolation": "bicubic"}


def opened(root: Path, workspace: Path, name: str = "image_folder", **settings: Any) -> ImageData:
    given = {"name": name, "root": root, "image_size": (24, 16), "heldout_fraction": 0.25}
    return open_data(DataConfig.model_validate(given | settings), workspace)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in both forms."""
    folder = write_folders(tmp_path_factory.mktemp("files"), {"train": 8, "test": 3})
    rows = tmp_path_factory.mktemp("rows")
    for part in ("train", "test"):
        write_parquet(rows / f"{part}.parquet", rows_of(folder / part))
    return {"image_folder": folder, "parquet": rows}


def test_evaluation_shows_it_and_views_do_not(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = opened(roots["image_folder"], tmp_path)
    files = sorted((roots["image_folder"] / "test").glob("*/*.jpg"))
    crop = CentreCrop.model_validate(CROP)
    expected = []
    for file in files:
        with Image.open(file) as image:
            expected.append(centre_crop(image, (24, 16), crop))
    for name, root in roots.items():
        for gigabytes in (None, 1):
            for processes in (0, 2):
                with Case(name, gigabytes, processes):
                    count = {"return_value": processes}
                    monkeypatch.setattr("kdcore.data.streamed_split._processes", Mock(**count))
                    data = opened(root, tmp_path, name, evaluation=CROP, decoded_gb=gigabytes)
                    assert torch.equal(torch.cat(list(data.test.batches(5))), torch.stack(expected))
                    order = torch.arange(len(data.train))
                    views = [torch.cat(list(one.train.views(order, 3, 7))) for one in (plain, data)]
                    assert torch.equal(*views)
                    assert data.train.view_recipe == plain.train.view_recipe
    assert not torch.equal(torch.cat(list(plain.test.batches(5))), torch.stack(expected))


def test_statistics_are_of_what_is_evaluated_and_kept_apart(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    def files() -> set[str]:
        return {path.name for path in (tmp_path / "data").glob("*.arrow")}

    plain = opened(roots["image_folder"], tmp_path)
    # As earlier versions named it.
    key = key_of([plain.digest, (24, 16), plain.train.image_ids.sort().values.tolist()])
    assert sum(name.endswith(f"-{key}.arrow") for name in files()) == 1
    before = files()
    data = opened(roots["image_folder"], tmp_path, evaluation=CROP)
    assert len(files() - before) == 1
    pixels = torch.cat(list(data.train.batches(64))).transpose(0, 1).flatten(1).double() / 255
    assert data.mean == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)
    assert data.std == pytest.approx(pixels.std(1).tolist(), rel=1e-12)
    assert data.mean != plain.mean
    assert opened(roots["image_folder"], tmp_path).mean == plain.mean


def test_it_is_part_of_identities_unless_it_is_the_usual_one(tmp_path: Path) -> None:
    teacher = TeacherConfig(backbone="resnet18", training=Recipe(epochs=1))

    def names(**changes: Any) -> tuple[str, str]:
        data = DataConfig.model_validate({"root": "/p", **changes})
        trial = TrialConfig(
            data=data, teacher=teacher, student="resnet8", training=Recipe(epochs=1)
        )
        shown: Any = SimpleNamespace(config=data, digest="x", in_channels=3)
        identity = hashlib.sha256(trial.identity.encode()).hexdigest()[:12]
        return teacher_folder(teacher, shown, tmp_path).name, identity

    streamed = {"name": "tiny_imagenet", "augmentation": "resized_crop"}
    # As version 0.1.0 and those after it, which had no such key, named them.
    for changes, earlier in (
        ({"name": "image_folder"}, ("image_folder-resnet18-faa01658c461", "9a5bd6aa0ae4")),
        ({"name": "imagenet"}, ("imagenet-resnet18-054b81943887", "0f427f77167e")),
        (streamed, ("tiny_imagenet-resnet18-0f53cd14d4eb", "4de6fd5e51f9")),
        (
            {"name": "parquet", "image_size": (160, 128)},
            ("parquet-resnet18-37130d80ad28", "95754a8bc5ec"),
        ),
    ):
        with Case(changes):
            crops: tuple[Any, ...] = ({"crop_share": 0.9}, {"interpolation": "bicubic"}, CROP)
            usual: tuple[Any, ...] = (None, {}, {"crop_share": 0.875})
            assert {names(**changes, evaluation=crop) for crop in usual} == {earlier}
            found = [names(**changes, evaluation=crop) for crop in crops]
            assert len({name for both in (earlier, *found) for name in both}) == 8


def test_a_card_tells_of_it_where_it_is_not_the_usual_one(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    for evaluation, told in ((CROP, True), (None, False)):
        data = opened(roots["image_folder"], tmp_path, evaluation=evaluation)
        student = build_classifier("resnet8", data, seed=0)
        card = describe_classifier(student, "resnet8", data, {}, {})
        save_classifier(tmp_path / "made", "student", student, card)
        assert ('"evaluation"' in (tmp_path / "made/student.json").read_text()) == told
        read = load_card(tmp_path / "made", "student")
        assert isinstance(read, ClassifierCard)
        assert (read.evaluation or USUAL_CROP) == CentreCrop.model_validate(evaluation or {})
