"""Published data sets of small images: their formats, views, downloads, and damage."""

import gzip
import hashlib
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from kdcore import DataConfig
from kdcore.data import tiny_imagenet
from kdcore.data.image_data import ImageData, open_data, source_of
from kdcore.data.image_table import TableSource
from tests.unit.kdcore.published import (
    PUBLISHED,
    TEST_IMAGES,
    TRAIN_LABELS,
    Images,
    batch,
    random_images,
    served,
)


def opened(name: str, root: Path | None, workspace: Path, **settings: Any) -> ImageData:
    given = {"name": name, "root": root, "heldout_fraction": 0.25}
    return open_data(DataConfig.model_validate(given | settings), workspace)


def assert_has(data: ImageData, images: Images) -> None:
    """45 images train, 15 are held out, 20 are the test split; all have the written pixels."""
    assert [len(part) for part in (data.train, data.heldout, data.test)] == [45, 15, 20]
    assert data.test.image_ids.tolist() == list(range(60, 80))
    for part in (data.train, data.heldout, data.test):
        ids = part.image_ids.numpy()
        assert np.array_equal(torch.cat(list(part.batches(7))).numpy(), images.pixels[ids])
        assert np.array_equal(part.labels.numpy(), images.labels[ids])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_files_are_read_in_the_root_and_where_torchvision_has_them(
    name: str, tmp_path: Path
) -> None:
    published = PUBLISHED[name]
    digests = set()
    for root, below in ((tmp_path / "plain", "."), (tmp_path / "torchvision", published.below)):
        images = published.write(root / below)
        data = opened(name, root, tmp_path)
        assert_has(data, images)
        assert data.image_size == images.pixels.shape[2:]
        assert data.in_channels == images.pixels.shape[1]
        assert data.num_classes == (100 if name == "cifar100" else 10)
        assert data.train.crop_padding == published.padding
        assert data.train.flip is published.flip
        digests.add(data.digest)
    assert len(digests) == 1


def _accept_the_checksums(reader: type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has torchvision take the small files for the published ones."""

    def listed(entries: list[list[str]]) -> list[list[str]]:
        return [[name, _md5(folder / name)] for name, _ in entries]

    for attribute in ("train_list", "test_list"):
        if hasattr(reader, attribute):
            monkeypatch.setattr(reader, attribute, listed(getattr(reader, attribute)))
    if hasattr(reader, "meta"):
        meta = reader.meta | {"md5": _md5(folder / reader.meta["filename"])}
        monkeypatch.setattr(reader, "meta", meta)
    if hasattr(reader, "split_list"):
        names = {part: f"{part}_32x32.mat" for part in ("train", "test")}
        splits = {part: ["", name, _md5(folder / name)] for part, name in names.items()}
        monkeypatch.setattr(reader, "split_list", splits)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvision_reads_the_same_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    published = PUBLISHED[name]
    root = tmp_path / "root"
    folder = root / published.below
    published.write(folder)
    table = source_of(name).open(DataConfig(name=name, root=root), tmp_path)
    reader = getattr(datasets, published.reader)
    _accept_the_checksums(reader, folder, monkeypatch)
    for part in ("train", "test"):
        chosen = {"split": part} if name in ("svhn", "stl10") else {"train": part == "train"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's about pickles of Python 2
            theirs = reader(str(root), **chosen)
        ours = table.split((table.is_test == (part == "test")).nonzero().flatten())
        images = [np.atleast_3d(np.asarray(image)).transpose(2, 0, 1) for image, _ in theirs]
        assert np.array_equal(np.stack(images), ours.images.numpy())
        assert [label for _, label in theirs] == ours.labels.tolist()


def test_class_names_are_those_of_torchvision() -> None:
    from torchvision import datasets

    for name, published in PUBLISHED.items():
        source = source_of(name)
        assert isinstance(source, TableSource)
        assert len(set(source.class_names)) == len(source.class_names)
        known = getattr(getattr(datasets, published.reader), "classes", None)
        if known:  # MNIST's are like '0 - zero'
            assert [each.split(" - ")[0] for each in known] == list(source.class_names)
    hundred = source_of("cifar100").class_names
    assert len(hundred) == 100
    assert list(hundred) == sorted(hundred)  # as the labels of CIFAR-100 count them


def test_the_table_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    images = PUBLISHED["cifar100"].write(root)
    opened("cifar100", root, tmp_path)
    (table,) = (tmp_path / "data").glob("*.arrow")
    written = table.stat().st_mtime_ns
    assert_has(opened("cifar100", root, tmp_path), images)
    assert table.stat().st_mtime_ns == written


# Downloads, from a server on this machine


def test_missing_files_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "there" / "cifar-100-python"
    images = PUBLISHED["cifar100"].write(folder)
    archive = tmp_path / "served" / CIFAR100.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as files:
        files.add(folder.parent, ".")
    monkeypatch.setattr(CIFAR100, "tgz_md5", _md5(archive))
    _accept_the_checksums(CIFAR100, folder, monkeypatch)
    root = tmp_path / "new" / "root"
    with served(archive.parent) as address:
        monkeypatch.setattr(CIFAR100, "url", f"{address}{archive.name}")
        assert_has(opened("cifar100", root, tmp_path, download=True), images)
    # The server is gone.
    for download in (True, False):
        assert_has(opened("cifar100", root, tmp_path, download=download), images)
    with pytest.raises(ValueError, match=r"download to '.*other' failed: .* try again, or put the"):
        opened("cifar100", tmp_path / "other", tmp_path, download=True)


def test_imagenet_and_tiny_imagenet_say_what_a_download_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"failed: The archive ILSVRC2012_devkit_t12\S+ is not"):
        opened("imagenet", tmp_path / "root", tmp_path, download=True)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    with served(tmp_path / "served") as address:
        monkeypatch.setattr(tiny_imagenet, "_URL", f"{address}tiny-imagenet-200.zip")
        with pytest.raises(ValueError, match=r"failed: .*404.*; try again, or unpack http"):
            opened("tiny_imagenet", tmp_path / "root", tmp_path, download=True)


# Roots and files that cannot be read


@pytest.mark.parametrize("name", PUBLISHED)
def test_roots_without_the_files_are_refused_with_the_ways_to_get_them(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    partly = tmp_path / "partly"
    PUBLISHED[name].write(partly)
    last = source_of(name).files(partly)[-1]
    last.unlink()
    for root, words in (
        (None, "root is missing, but .* is read from files"),
        (tmp_path / "absent", "absent', but that is not a folder"),
        (tmp_path / "empty", "empty', but that has no .* ?file"),
        (partly, f"partly', but {last.name} is missing"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            opened(name, root, tmp_path)
        assert "download: true" in str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_cut_anywhere_is_refused_by_name(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    PUBLISHED[name].write(root)
    for path in source_of(name).files(root):
        content = path.read_bytes()
        for length in {0, 1, len(content) // 3, len(content) - 8}:
            path.write_bytes(content[:length])
            with pytest.raises(ValueError, match="damaged") as caught:
                opened(name, root, tmp_path)
            assert str(path) in str(caught.value)
            assert "download it again" in str(caught.value)
            assert "\n" not in str(caught.value)
        path.write_bytes(content)
    assert not list((tmp_path / "data").glob("*.arrow"))
    opened(name, root, tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_another_file_in_the_place_of_one_is_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    PUBLISHED[name].write(root)
    for path in source_of(name).files(root):
        content = path.read_bytes()
        for other in (b"<html>404 Not Found</html>", gzip.compress(content)):
            path.write_bytes(other)
            with pytest.raises(ValueError, match="damaged"):
                opened(name, root, tmp_path)
        path.write_bytes(content)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_that_may_not_be_read_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PUBLISHED[name].write(tmp_path / "root")

    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(ValueError, match=r"root/\S+ cannot be read: Permission denied; make it"):
        opened(name, tmp_path / "root", tmp_path)


class _Code:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_batch_is_refused_and_never_run(tmp_path: Path) -> None:
    root, made = tmp_path / "root", tmp_path / "made"
    images = PUBLISHED["cifar100"].write(root)
    harmful = {"data": images.pixels[60:].reshape(-1, 3072), "fine_labels": [_Code(made)]}
    for protocol in range(2, 6):
        (root / "test").write_bytes(pickle.dumps(harmful, protocol))
        with pytest.raises(ValueError, match=r"it names \S+, but may hold arrays, lists"):
            opened("cifar100", root, tmp_path)
        assert not made.exists()
    (root / "test").write_bytes(batch(*images.test, "fine_labels", 4))
    assert_has(opened("cifar100", root, tmp_path), images)


PIXELS = random_images(3, 32, 10).pixels[:2].reshape(2, -1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it is no dictionary with 'data' and 'fine_labels'"),
        ({"data": PIXELS, "labels": [1, 2]}, "it is no dictionary with 'data' and 'fine_labels'"),
        ({"data": PIXELS[:, 1:], "fine_labels": [1, 2]}, "no array of rows of 3,072 bytes"),
        ({"data": [3], "fine_labels": [1, 2]}, "no array of rows of 3,072 bytes"),
        ({"data": PIXELS.astype(float), "fine_labels": [1]}, "an array of 'f8'"),
        ({"data": PIXELS, "fine_labels": [1, 2.5]}, "are no list of integers"),
        ({"data": PIXELS, "fine_labels": [1, 2, 3]}, r"\(3,\) labels do not fit"),
        ({"data": PIXELS, "fine_labels": [1, 100]}, r"label 100 \(from 0\), but there are 100"),
        ({"data": PIXELS, "fine_labels": [1, -1]}, r"label -1 \(from 0\)"),
    ],
)
def test_batches_with_something_else_in_them_are_refused(
    content: object, message: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    PUBLISHED["cifar100"].write(root)
    (root / "test").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        opened("cifar100", root, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "lacks the images X or the labels y"),
        ({"X": np.zeros((2, 2), np.uint8), "y": [1]}, r"X is \(2, 2\) of uint8, but must be"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": [1, 2]}, "of float64, but must be"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": ["a", "b"]}, "y is of <U1"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [1, 11]}, "label 11"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [1]}, r"\(1,\) labels do not fit"),
        ({"X": np.zeros((8, 8, 3, 2), np.uint8), "y": [1, 2]}, r"\(3, 8, 8\), those of"),
    ],
)
def test_mat_files_with_something_else_in_them_are_refused(
    content: dict[str, object], message: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    PUBLISHED["svhn"].write(root)
    savemat(root / "test_32x32.mat", content)
    with pytest.raises(ValueError, match=message):
        opened("svhn", root, tmp_path)


def test_stl10s_class_0_and_idx_files_of_other_shapes_are_refused(tmp_path: Path) -> None:
    PUBLISHED["stl10"].write(tmp_path / "stl10")
    (tmp_path / "stl10" / "test_y.bin").write_bytes(bytes(20))
    with pytest.raises(ValueError, match=r"test_y.bin: label -1 \(from 0\)"):
        opened("stl10", tmp_path / "stl10", tmp_path)
    PUBLISHED["mnist"].write(tmp_path / "mnist")
    for content in (b"\0\0\x08\0x", (tmp_path / "mnist" / TRAIN_LABELS).read_bytes()):
        (tmp_path / "mnist" / TEST_IMAGES).write_bytes(content)
        with pytest.raises(ValueError, match="is not the shape of grey images"):
            opened("mnist", tmp_path / "mnist", tmp_path)
