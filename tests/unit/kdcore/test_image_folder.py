"""Folders of image files: their layouts, what is kept of them, and mistakes in them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kdcore import DataConfig
from kdcore.data import image_folder
from kdcore.data.image_data import ImageData, open_data
from kdcore.data.source import UNLABELLED
from kdcore.errors import DataError
from tests.unit.kdcore.photographs import CLASSES, encoded, photograph, write_folders


def opened(root: Path | str | None, workspace: Path, **settings: Any) -> ImageData:
    given = {"name": "image_folder", "image_size": (16, 16), "heldout_fraction": 0.25}
    return open_data(DataConfig.model_validate(given | {"root": root} | settings), workspace)


def sizes(data: ImageData) -> list[int]:
    return [len(part) for part in (data.train, data.heldout, data.test)]


def test_classes_are_the_folders_and_the_parts_their_own(tmp_path: Path) -> None:
    data = opened(write_folders(tmp_path / "root", {"train": 8, "test": 3}), tmp_path)
    assert data.class_names == CLASSES
    assert sizes(data) == [18, 6, 9]
    ids = torch.cat([data.train.image_ids, data.heldout.image_ids])
    assert sorted(ids.tolist()) == list(range(24))
    assert data.test.image_ids.tolist() == list(range(24, 33))
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.heldout.labels.bincount().tolist() == [2, 2, 2]
    # Each class is strongest in a channel of its own.
    for part in (data.train, data.heldout, data.test):
        (pixels,) = part.batches(100)
        assert torch.equal(pixels.float().mean((2, 3)).argmax(1), part.labels)


@pytest.mark.parametrize(
    ("parts", "test"),
    [
        ({"train": 8, "val": 2}, "val"),
        ({"train": 8, "validation": 2}, "validation"),
        ({"train": 8, "val": 2, "test": 2}, "test"),
        ({"train": 8, "val": 2, "validation": 2}, "validation"),
    ],
)
def test_one_part_is_the_test_split_and_others_are_left_out(
    parts: dict[str, int], test: str, tmp_path: Path
) -> None:
    data = opened(write_folders(tmp_path / "root", parts), tmp_path)
    assert sizes(data) == [18, 6, 6]
    store = data.test.store
    assert {Path(image.place).parts[-3] for image in store.read(data.test.image_ids)} == {test}


def test_images_without_classes_have_no_label_wherever_they_are(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {"train": 8, "test": 3})
    digests = []
    for place in ("more", "elsewhere/more"):
        more = tmp_path / place
        for number, folder in enumerate((".", "a", "a/b", ".hidden")):
            (more / folder).mkdir(parents=True, exist_ok=True)
            (more / folder / "1.png").write_bytes(encoded(photograph(number), "PNG"))
        (more / "nothing").mkdir()
        data = opened(root, tmp_path, unlabelled=str(more), train_images=9)
        assert data.config.judge == "linear_probe"
        assert sizes(data) == [9, 6, 9]
        assert data.unlabelled is not None
        assert data.unlabelled.labels.tolist() == [UNLABELLED] * (18 + 3)
        ids = data.unlabelled.image_ids
        named = [Path(image.place) for image in data.unlabelled.store.read(ids)]
        assert [each.relative_to(more).as_posix() for each in named[-3:]] == [
            "1.png",
            "a/1.png",
            "a/b/1.png",
        ]
        heldout = {image.place for image in data.heldout.store.read(data.heldout.image_ids)}
        assert not heldout & set(map(str, named))
        (views,) = data.unlabelled.views(torch.arange(21), 0, 21)
        assert views.shape == (21, 3, 16, 16)
        digests.append(data.digest)
    assert digests[0] == digests[1] != opened(root, tmp_path).digest
    # A test split that is set aside is of images with labels.
    flat = write_folders(tmp_path / "flat", {".": 20})
    assert sizes(opened(flat, tmp_path, unlabelled=more)) == [40, 14, 6]
    (tmp_path / "empty").mkdir()
    for unlabelled, words in (
        (tmp_path / "empty", "has no files that end in"),
        (tmp_path / "missing", "is not a folder"),
        (root, "has images of the class folder"),
        (root / "train" / "cat", "has images of the class folder"),
    ):
        with pytest.raises(DataError, match=words):
            opened(root, tmp_path, unlabelled=unlabelled)
    written = DataConfig(name="image_folder", root=root).model_dump()
    assert not {"judge", "unlabelled"} & written.keys()  # searches of before know neither


def test_a_test_folder_without_classes_is_none(tmp_path: Path) -> None:
    # ImageNet's test images have no labels.
    root = write_folders(tmp_path / "root", {"train": 8, "val": 2})
    (root / "test").mkdir()
    (root / "test" / "1.jpg").write_bytes(encoded(photograph(0)))
    assert sizes(opened(root, tmp_path)) == [18, 6, 6]


@pytest.mark.parametrize("part", [".", "train"])
def test_without_a_test_split_a_share_of_each_class_is_set_aside(part: str, tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {part: 20})
    data = opened(root, tmp_path)
    assert sizes(data) == [40, 14, 6]
    assert data.test.labels.bincount().tolist() == [2, 2, 2]
    other = opened(root, tmp_path, test_fraction=0.5, split_seed=1)
    assert sizes(other) == [22, 8, 30]
    again = opened(root, tmp_path, test_fraction=0.5, split_seed=2)
    assert torch.equal(again.test.image_ids, other.test.image_ids)
    assert not torch.equal(again.heldout.image_ids, other.heldout.image_ids)


def test_fewer_training_images_are_a_stratified_part(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {"train": 8, "test": 1})
    data = opened(root, tmp_path, train_images=9)
    assert data.train.labels.bincount().tolist() == [3, 3, 3]
    assert sizes(data) == [9, 6, 3]


def test_files_are_told_by_their_endings(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {"train": 4, "test": 1})
    cats = root / "train" / "cat"
    for index, (ending, kind) in enumerate(
        [("JPG", "JPEG"), ("jpeg", "JPEG"), ("Png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP")]
    ):
        (cats / f"other {index}.{ending}").write_bytes(encoded(photograph(index), kind))
    (cats / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encoded(photograph(0)))
    (cats / "notes.txt").write_text("no image")
    (cats / "folder.jpg").mkdir()
    (root / "train" / ".cache").mkdir()
    data = opened(root, tmp_path)
    assert data.class_names == CLASSES
    labels = torch.cat([data.train.labels, data.heldout.labels])
    assert labels.bincount().tolist() == [10, 4, 4]
    assert sum(len(batch) for batch in data.train.batches(5)) == len(data.train)


# What is kept


def test_files_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folders(tmp_path / "root", {"train": 4, "test": 1})
    first = opened(root, tmp_path)
    with monkeypatch.context() as context:
        context.setattr(image_folder, "_list", None)
        again = opened(root, tmp_path, split_seed=1)
    assert again.digest == first.digest
    (root / "train/cat/more.jpg").write_bytes(encoded(photograph(0)))
    more = opened(root, tmp_path)
    assert sum(sizes(more)) == sum(sizes(first)) + 1
    assert more.digest != first.digest


def test_a_damaged_list_is_made_again_with_a_warning(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {"train": 4, "test": 1})
    first = opened(root, tmp_path)
    for kept in (tmp_path / "data").glob("*.arrow"):
        kept.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"(list of files|statistics file) .* is damaged"):
        again = opened(root, tmp_path)
    assert (again.digest, again.mean) == (first.digest, first.mean)


def test_the_same_files_in_another_folder_have_the_same_digest(tmp_path: Path) -> None:
    parts = {"train": 4, "test": 1}
    one = opened(write_folders(tmp_path / "one", parts), tmp_path)
    two = opened(write_folders(tmp_path / "two", parts), tmp_path)
    assert one.digest == two.digest


# Mistakes


def _empty_class(root: Path) -> None:
    (root / "train" / "emu").mkdir()


def _class_of_the_test_alone(root: Path) -> None:
    (root / "test" / "owl").rename(root / "test" / "owls")


def _no_train(root: Path) -> None:
    (root / "train").rename(root / "trian")


def _one_class(root: Path) -> None:
    for name in ("dog", "owl"):
        (root / "train" / name).rename(root / name)


def _damaged_image(root: Path) -> None:
    (root / "train/owl/002.jpg").write_bytes(b"")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (_empty_class, r"class folder .*train/emu has no files that end in .jpg, .*; add some or"),
        (_class_of_the_test_alone, "test has a class folder 'owls', but .*did you mean 'owl'?"),
        (_no_train, "root has test, but no train with a folder for each class"),
        (_one_class, "train has 1 class folders, but needs at least 2"),
        (
            _damaged_image,
            r"damaged image .*train/owl/002.jpg: it is empty; replace it, or remove it",
        ),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_mistakes_are_named_with_the_way_out(
    mistake: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    root = write_folders(tmp_path / "root", {"train": 4, "test": 1})
    mistake(root)
    with pytest.raises(ValueError, match=message):
        opened(root, tmp_path)


def test_one_number_is_height_and_width() -> None:
    sizes = [DataConfig(name="image_folder", image_size=size) for size in (16, (16, 16))]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_fraction": 0.5}, "test_fraction is 0.5, but root has a test split of 3 images"),
        ({"label_column": "x"}, "label_column is x, but image_folder has no such setting; leave"),
        ({"image_size": (0, 9)}, r"is \(0, 9\), but must be pixels, 1 or more: one number"),
        ({"image_size": True}, "is True, but must be pixels"),
        ({"image_size": 24.5}, "is 24.5, but must be pixels"),
        ({"image_size": [24]}, r"is \[24\], but must be pixels, .* or height and width, like \["),
        ({"download": True}, "download is true, but image_folder has nothing to download"),
    ],
)
def test_impossible_settings_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    root = write_folders(tmp_path / "root", {"train": 4, "test": 1})
    with pytest.raises(ValueError, match=message):
        opened(root, tmp_path, **settings)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (None, "root is missing; set it to a folder with train/<class>/<files>"),
        ("/nowhere", "root is '/nowhere', but that is not a folder; set it to"),
        ("s3://bucket/x", "root is 's3://bucket/x', but image_folder reads local folders only"),
    ],
)
def test_roots_that_cannot_be_read_are_refused(
    root: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(root, tmp_path)


def test_too_small_a_share_for_the_test_is_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {"train": 4})
    for _ in range(2):  # the list of files is kept, and not damaged
        with pytest.raises(ValueError, match=r"test_fraction is 0.01, but leaves 0 of 12 images"):
            opened(root, tmp_path, test_fraction=0.01)


def test_an_image_of_one_pixel_can_be_shown(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {"train": 4, "test": 1})
    Image.new("RGB", (1, 1), (255, 0, 0)).save(root / "test/cat/000.jpg")
    (pixels,) = opened(root, tmp_path).test.batches(3)
    assert pixels.shape == (3, 3, 16, 16)
