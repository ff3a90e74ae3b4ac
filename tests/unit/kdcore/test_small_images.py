"""Encoded images as tables and as Hugging Face stores CIFAR; Tiny-ImageNet and ImageNet."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdcore import DataConfig
from kdcore.data import image_table, small_images
from kdcore.data.image_data import ImageData, open_data, source_of
from kdcore.data.image_table import ImageTable
from kdcore.data.split import TableSplit
from kdcore.data.streamed_split import StreamedSplit
from search.record.looks import images_of
from tests.unit.kdcore.photographs import CLASSES, encoded, write_folders
from tests.unit.kdcore.published import write_cifar100


def opened(name: str, root: Path, workspace: Path, **settings: Any) -> ImageData:
    given = {"name": name, "root": root, "heldout_fraction": 0.25}
    return open_data(DataConfig.model_validate(given | settings), workspace)


def sizes(data: ImageData) -> list[int]:
    return [len(part) for part in (data.train, data.heldout, data.test)]


def shrink(root: Path, size: tuple[int, int] = (20, 24)) -> Path:
    """Makes the images below a folder so many pixels wide and high."""
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            small = image.resize(size)
        small.save(path)
    return root


def pixels_of(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_folder_of_small_images_becomes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shrink(write_folders(tmp_path / "root", {"train": 8, "test": 4}))
    data = opened("image_folder", root, tmp_path, augmentation="pad_crop")
    assert isinstance(data.train, TableSplit)
    assert sizes(data) == [18, 6, 12]
    assert (data.image_size, data.in_channels) == ((24, 20), 3)
    assert (data.train.crop_padding, data.train.flip) == (2, True)  # an eighth of 20
    files = [path for part in ("train", "test") for path in sorted((root / part).glob("*/*.jpg"))]
    for part in (data.train, data.heldout, data.test):
        for image_id, pixels in zip(part.image_ids.tolist(), part.images, strict=True):
            assert torch.equal(pixels, pixels_of(files[image_id]))
    monkeypatch.setattr(small_images, "_pixels", None)  # it is made once
    again = opened("image_folder", root, tmp_path, augmentation="pad_crop")
    assert torch.equal(again.train.images, data.train.images)


def test_both_augmentations_split_alike(tmp_path: Path) -> None:
    root = shrink(write_folders(tmp_path / "root", {".": 20}))
    for share in (0.2, 0.5):
        table, streamed = (
            opened("image_folder", root, tmp_path, augmentation=each, test_fraction=share)
            for each in ("pad_crop", "resized_crop")
        )
        assert isinstance(streamed.train, StreamedSplit)
        assert streamed.image_size == (224, 224)
        for part in ("train", "heldout", "test"):
            ours, theirs = getattr(table, part), getattr(streamed, part)
            assert torch.equal(ours.image_ids, theirs.image_ids)
            assert torch.equal(ours.labels, theirs.labels)
        assert len(table.test) == 60 * share


def test_cifar_as_hugging_face_stores_it_has_the_images_of_the_batches(tmp_path: Path) -> None:
    images = write_cifar100(tmp_path / "batches")
    feature = {"names": source_of("cifar100").class_names, "_type": "ClassLabel"}
    described = json.dumps({"info": {"features": {"fine_label": feature}}})
    for part, (pixels, labels) in (("train", images.train), ("test", images.test)):
        files = [encoded(Image.fromarray(each.transpose(1, 2, 0)), "PNG") for each in pixels]
        rows = {
            "img": [{"bytes": content, "path": None} for content in files],
            "fine_label": labels,
            "coarse_label": np.zeros(len(labels)),
        }
        path = tmp_path / f"rows/cifar100/{part}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows, metadata={"huggingface": described}), path)
    rows_data = opened(
        "parquet",
        tmp_path / "rows",
        tmp_path,
        image_column="img",
        label_column="fine_label",
        augmentation="pad_crop",
    )
    batches = opened("cifar100", tmp_path / "batches", tmp_path)
    assert sizes(rows_data) == sizes(batches) == [45, 15, 20]
    assert rows_data.class_names == batches.class_names
    assert (rows_data.mean, rows_data.std) == (batches.mean, batches.std)
    for part in ("train", "heldout", "test"):
        ours, theirs = getattr(rows_data, part), getattr(batches, part)
        assert torch.equal(ours.images, theirs.images)
        order = torch.arange(len(ours))
        for view in range(2):
            shown, expected = (next(split.views(order, view, 64)) for split in (ours, theirs))
            assert torch.equal(shown, expected)


def test_images_of_two_sizes_damaged_or_too_many_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shrink(write_folders(tmp_path / "root", {"train": 4, "test": 4}))
    path = root / "test/dog/002.jpg"
    content = path.read_bytes()
    path.write_bytes(encoded(Image.new("RGB", (9, 8))))
    words = r"image .*dog/002.jpg is 8x9, but .*cat/000.jpg 24x20, .*set augmentation: resized_crop"
    with pytest.raises(ValueError, match=words):
        opened("image_folder", root, tmp_path, augmentation="pad_crop")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"damaged image .*dog/002.jpg: .*; replace it"):
        opened("image_folder", root, tmp_path, augmentation="pad_crop")
    path.write_bytes(content)
    monkeypatch.setattr(small_images, "_MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"24 images of 24x20 are 0.0 GiB of pixels, but"):
        opened("image_folder", root, tmp_path, augmentation="pad_crop")
    assert not list((tmp_path / "data").glob("*-pixels-*.arrow"))


# The configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "image_folder", "augmentation": "pad"}, "augmentation"),
        ({"name": "cifar10", "augmentation": "pad_crop"}, "pad_crop, but cifar10 has no such"),
        ({"name": "imagenet", "augmentation": "pad_crop"}, "pad_crop, but imagenet has no such"),
        (
            {"name": "parquet", "augmentation": "pad_crop", "image_size": (32, 32)},
            r"image_size is \(32, 32\), but augmentation is pad_crop, which takes images as",
        ),
        (
            {"name": "tiny_imagenet", "image_size": (32, 32)},
            r"image_size is \(32, 32\), but augmentation is pad_crop",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate(settings)


def test_configurations_are_written_as_before_unless_another_augmentation_is_chosen() -> None:
    """Names of teachers' folders, checkpoints and looks are made from this text."""
    folder = {"name": "image_folder", "root": "/images"}
    usual = DataConfig.model_validate(folder)
    assert usual == DataConfig.model_validate(folder | {"augmentation": "resized_crop"})
    text = json.dumps(usual.model_dump(mode="json", exclude={"root", "download"}), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == "d8cd05fe971f"
    digits = DataConfig(name="digits").model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(digits, sort_keys=True).encode()).hexdigest()[:12]
    assert digest == "07f1911497b5"
    chosen = DataConfig.model_validate(folder | {"augmentation": "pad_crop"})
    assert chosen.model_dump(mode="json")["augmentation"] == "pad_crop"
    assert chosen.image_size is None
    for config in (usual, chosen, DataConfig(name="tiny_imagenet"), DataConfig(name="svhn")):
        assert DataConfig.model_validate_json(config.model_dump_json()) == config
    assert "augmentation" not in images_of(chosen)


def test_files_made_before_are_found_by_their_names(tmp_path: Path) -> None:
    open_data(DataConfig(name="digits"), tmp_path)
    root = write_folders(tmp_path / "root", {"train": 4, "test": 2})
    opened("image_folder", root, tmp_path)
    folders = [f"{part}/{name}" for part in ("train", "test") for name in CLASSES]
    times = [[folder, (root / folder).stat().st_mtime_ns] for folder in folders]
    key = hashlib.sha256(json.dumps([1, str(root.resolve()), times]).encode()).hexdigest()[:12]
    names = {path.name for path in (tmp_path / "data").glob("*.arrow")}
    digits = hashlib.sha256(b"[1, []]").hexdigest()[:12]
    assert names >= {f"digits-{digits}.arrow", f"image_folder-{key}.arrow"}


def test_mean_and_deviation_of_a_large_table_are_those_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (5000, 2, 3, 4), dtype=np.uint8)
    pixels[:, 1] //= 3
    table = ImageTable(
        images=torch.from_numpy(pixels),
        labels=torch.zeros(5000).long(),
        is_test=torch.zeros(5000).bool(),
        class_names=("a", "b"),
        in_channels=2,
        image_size=(3, 4),
        digest="",
        view_seed=0,
        crop_padding=0,
        flip=False,
    )
    positions = torch.arange(3, 4900)
    expected = table.statistics(positions)
    monkeypatch.setattr(image_table, "_MOST_AS_FLOATS", 0)
    for ours, theirs in zip(table.statistics(positions), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


# Tiny-ImageNet and ImageNet

WNIDS = ("n01443537", "n01629819", "n02085620")


def write_tiny(root: Path) -> Path:
    """Eight training images and four of the test for each of three classes, 64x64."""
    lines = []
    (root / "val/images").mkdir(parents=True)
    (root / "test/images").mkdir(parents=True)
    for label, wnid in enumerate(WNIDS):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{wnid}_boxes.txt").write_text("")
        for index in range(12):
            mode, grey = ("L", 40 * label) if index == 5 else ("RGB", (80 * label, index, 9))
            image = encoded(Image.new(mode, (64, 64), grey))
            if index < 8:
                (folder / f"{wnid}_{index}.JPEG").write_bytes(image)
            else:
                name = f"val_{3 * index + label}.JPEG"
                (root / "val/images" / name).write_bytes(image)
                lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(lines[::-1]))
    (root / "test/images/test_0.JPEG").write_bytes(b"never read")
    return root


@pytest.mark.parametrize("below", [".", "tiny-imagenet-200"])
def test_tiny_imagenet_is_a_table_with_its_validation_part_as_the_test(
    below: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    write_tiny(root / below)
    data = opened("tiny_imagenet", root, tmp_path)
    assert sizes(data) == [18, 6, 12]
    assert data.class_names == WNIDS
    assert (data.image_size, data.in_channels) == ((64, 64), 3)
    assert (data.train.crop_padding, data.train.flip) == (8, True)
    red = data.test.images[:, 0].float().mean((1, 2))
    assert torch.equal((red / 80).round().long(), data.test.labels)
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    streamed = opened("tiny_imagenet", root, tmp_path, augmentation="resized_crop")
    assert isinstance(streamed.train, StreamedSplit)
    assert streamed.image_size == (64, 64)
    assert torch.equal(streamed.test.labels, data.test.labels)


def test_another_annotation_gives_another_table(tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "root")
    before = opened("tiny_imagenet", root, tmp_path)
    path = root / "val/val_annotations.txt"
    path.write_text(path.read_text().replace(WNIDS[0], WNIDS[1]))
    after = opened("tiny_imagenet", root, tmp_path)
    assert after.test.labels.bincount().tolist() == [0, 8, 4]
    assert after.digest != before.digest


def test_incomplete_tiny_imagenets_are_refused(tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "root")
    path = root / "val/val_annotations.txt"
    good = path.read_text()
    for text, words in (
        (good[:-4], "line 12 is .*, but must have a file, its class and four"),
        ("", "it is empty"),
        (good.replace("val_24.JPEG", "../a.JPEG"), "line 12 is"),
        (good.replace("val_24.JPEG", "val_99.JPEG"), "val_99.JPEG is missing; unpack"),
        (good.replace(WNIDS[0], "n01443538"), "class 'n01443538', .*did you mean 'n01443537'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            opened("tiny_imagenet", root, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"val_annotations.txt is missing or no text; unpack http"):
        opened("tiny_imagenet", root, tmp_path)
    path.write_text(good)
    image = root / "train" / WNIDS[1] / "images" / f"{WNIDS[1]}_3.JPEG"
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"damaged image .*{WNIDS[1]}_3.JPEG"):
        opened("tiny_imagenet", root, tmp_path)


@pytest.mark.parametrize("name", ["tiny_imagenet", "imagenet"])
def test_wrong_roots_are_refused_with_the_ways_out(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folders = write_folders(tmp_path / "folders", {"train": 4})
    for root, words in (
        (None, "root is missing; set it to a folder with train/<wnid>"),
        (tmp_path / "absent", "absent', but that is not a folder; set it to"),
        (tmp_path / "empty", "empty', but .*train"),
        (folders, "folder images in it" if name == "tiny_imagenet" else "val has no such folder"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            opened(name, root, tmp_path)
        assert "download: true" in str(caught.value)


def test_imagenet_tests_on_its_validation_part_whatever_else_is_there(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {"train": 4, "val": 2, "test": 3}, WNIDS)
    data = opened("imagenet", root, tmp_path, image_size=(16, 16))
    assert sizes(data) == [9, 3, 6]
    assert data.class_names == WNIDS
    assert isinstance(data.train, StreamedSplit)
    assert data.train.view_recipe == "seed 0, random resized crop to 16x16, flip"
    folder = opened("image_folder", root, tmp_path, image_size=(16, 16))
    assert len(folder.test) == 9
    assert torch.equal(
        torch.cat(list(folder.train.batches(4))), torch.cat(list(data.train.batches(4)))
    )


def test_the_archives_of_imagenet_are_unpacked_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import imagenet

    source = write_folders(tmp_path / "source", {"train": 4, "val": 2}, WNIDS)
    root = tmp_path / "root"
    root.mkdir()
    archives = {part: root / imagenet.ARCHIVE_META[part][0] for part in ("train", "val")}
    for wnid in WNIDS:  # an archive of archives
        with tarfile.open(tmp_path / f"{wnid}.tar", "w") as inner:
            inner.add(source / "train" / wnid, ".")
    with tarfile.open(archives["train"], "w") as outer:
        for wnid in WNIDS:
            outer.add(tmp_path / f"{wnid}.tar", f"{wnid}.tar")
    with tarfile.open(archives["val"], "w") as outer:
        for number, path in enumerate(sorted((source / "val").glob("*/*"))):
            outer.add(path, f"ILSVRC2012_val_{number:08}.jpg")
    # As torchvision keeps what it finds in the third archive.
    classes_of_val = [wnid for wnid in WNIDS for _ in range(2)]
    torch.save(({wnid: (wnid,) for wnid in WNIDS}, classes_of_val), root / "meta.bin")
    for part, archive in archives.items():
        known = (archive.name, hashlib.md5(archive.read_bytes()).hexdigest())
        monkeypatch.setitem(imagenet.ARCHIVE_META, part, known)
    data = opened("imagenet", root, tmp_path, image_size=(16, 16), download=True)
    expected = opened("imagenet", source, tmp_path, image_size=(16, 16))
    assert sizes(data) == sizes(expected) == [9, 3, 6]
    for part in ("train", "heldout", "test"):
        ours, theirs = getattr(data, part), getattr(expected, part)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(next(ours.batches(9)), next(theirs.batches(9)))


def test_imagenets_validation_part_must_be_sorted_into_classes(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {"train": 4}, WNIDS)
    (root / "val").mkdir()
    (root / "val/ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match="val has no folder for each class in it; unpack ImageNet"):
        opened("imagenet", root, tmp_path)
