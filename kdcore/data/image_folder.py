"""Image files in one folder for each class, as ImageNet is commonly unpacked.

The root contains `train/<class>/<files>` and a test split, `test/<class>/<files>`. Without `test`,
`validation` or `val` is the test split; otherwise they are ignored. Without `train`, the root
contains the class folders. Without a test split, a share of the images is set aside for it.

Files are recognised by suffix; folder names are class names. Images are read only when they are
needed. The list of files is cached until a class folder is modified, which overwriting a file does
not do. The digest is of names and sizes.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from torch import Tensor

from kdcore.data.arrow_files import key_of, metadata_of, open_or_make, tensor_of
from kdcore.data.config import DataConfig
from kdcore.data.decoding import EncodedImage
from kdcore.data.source import Source
from kdcore.data.streamed_split import TESTS, TRAIN, ImageStore, StreamedCollection
from kdcore.errors import DataError, did_you_mean

_SCHEMA_VERSION = 1
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Files(ImageStore):
    """Image files below a folder.

    Args:
        root: the folder.
        names: [N], paths relative to it, as bytes.
    """

    root: Path
    names: pa.BinaryArray

    def read(self, image_ids: Tensor) -> Iterator[EncodedImage]:
        for image_id in image_ids.tolist():
            path = self.root / os.fsdecode(self.names[image_id].as_py())
            yield EncodedImage(str(path), path)


@dataclass(frozen=True)
class _ClassFolder:
    """The folder of a class; its name is relative to the root."""

    name: str
    label: int
    is_test: bool


@dataclass(frozen=True, kw_only=True)
class ImageFolderSource(Source):
    """Opens image folders."""

    def open(self, config: DataConfig, workspace: Path) -> StreamedCollection:
        root, image_size = config.root, config.image_size
        assert not isinstance(root, str)  # DataConfig refuses URIs here
        assert image_size is not None
        if root is None or not root.is_dir():
            what = "missing" if root is None else f"{str(root)!r}, but that is not a folder"
            raise DataError(f"root is {what}; set it to a folder with {TRAIN}/<class>/<files>")
        classes, folders = _class_folders(root)
        identity = [(folder.name, (root / folder.name).stat().st_mtime_ns) for folder in folders]
        key = key_of([_SCHEMA_VERSION, str(root.resolve()), identity])
        cache_path = workspace / "data" / f"{config.name}-{key}"

        def collection(batch: pa.RecordBatch) -> StreamedCollection:
            return StreamedCollection(
                labels=tensor_of(batch["label"].to_numpy()),
                is_test=tensor_of(batch["is_test"].to_numpy(zero_copy_only=False)),
                class_names=classes,
                in_channels=3,
                image_size=image_size,
                digest=metadata_of(batch)["digest"],
                store=Files(root, batch["name"]),
                view_seed=config.view_seed,
                cache_path=cache_path,
            )

        path = cache_path.with_name(f"{cache_path.name}.arrow")
        images = open_or_make(
            path, "list of files", lambda: _list(root, folders, classes), collection
        )
        return images.with_test_split(config.test_fraction)


def _class_folders(root: Path) -> tuple[tuple[str, ...], list[_ClassFolder]]:
    """The class names, and the class folders: first for training, then for the test."""
    parts = [
        name for name in (TRAIN, *TESTS) if (root / name).is_dir() and _folders_in(root / name)
    ]
    if not parts:
        classes = _folders_in(root)
        _check_number_of(classes, root)
        return classes, [_ClassFolder(name, label, False) for label, name in enumerate(classes)]
    if TRAIN not in parts:
        raise DataError(f"{root} has {parts[0]}, but no {TRAIN} with a folder for each class")
    classes = _folders_in(root / TRAIN)
    _check_number_of(classes, root / TRAIN)
    folders = [_ClassFolder(f"{TRAIN}/{name}", label, False) for label, name in enumerate(classes)]
    for test in parts[1:2]:
        for name in _folders_in(root / test):
            if name not in classes:
                raise DataError(
                    f"{root / test} has a class folder {name!r}, but {root / TRAIN} does not"
                    f"{did_you_mean(name, classes)} Rename it or remove it"
                )
            folders.append(_ClassFolder(f"{test}/{name}", classes.index(name), True))
    return classes, folders


def _check_number_of(classes: tuple[str, ...], folder: Path) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{folder} has {len(classes)} class folders, but needs at least 2: a folder for each "
            f"class, with its images in it"
        )


def _folders_in(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(
            sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            )
        )


def _list(root: Path, folders: list[_ClassFolder], classes: tuple[str, ...]) -> pa.RecordBatch:
    """The list of files, sorted within each folder."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    names: list[bytes] = []
    labels: list[int] = []
    is_test: list[bool] = []
    for folder in folders:
        with os.scandir(root / folder.name) as entries:
            files = sorted(
                (os.fsencode(f"{folder.name}/{entry.name}"), entry.stat().st_size)
                for entry in entries
                if entry.name.lower().endswith(_SUFFIXES) and entry.is_file()
            )
        if not files:
            raise DataError(
                f"class folder {root / folder.name} has no files that end in "
                f"{', '.join(_SUFFIXES)}; add some or remove it"
            )
        for name, size in files:
            digest.update(b"%s\0%d\0" % (name, size))
            names.append(name)
        labels += [folder.label] * len(files)
        is_test += [folder.is_test] * len(files)
    columns = {
        "name": pa.array(names, pa.binary()),
        "label": pa.array(labels, pa.int64()),
        "is_test": pa.array(is_test),
    }
    return pa.record_batch(columns).replace_schema_metadata({"digest": digest.hexdigest()[:16]})


SOURCE = ImageFolderSource()
