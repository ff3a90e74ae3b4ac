"""Image files in one folder for each class, as ImageNet is commonly unpacked.

The root contains `train/<class>/<files>` and a test split, `test/<class>/<files>`. Without `test`,
`validation` or `val` is the test split; otherwise they are ignored. Without `train`, the root
contains the class folders. Without a test split, a share of the images is set aside for it.

Files are recognised by suffix; folder names are class names. Images are read only when they are
needed. The list of files is cached until a class folder is modified, which overwriting a file does
not do. The digest is of names and sizes, and of the background where an image is transparent; files
that end in .jpg or .jpeg are not looked at for that. Small images of one size can be decoded once,
into an image table: `augmentation: pad_crop`. Images without classes may lie in a folder of their
own, `unlabelled`, and in folders inside it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from kdcore.data.arrow_files import key_of, metadata_of, open_or_make, tensor_of
from kdcore.data.centre_crop import USUAL_CROP
from kdcore.data.config import DataConfig
from kdcore.data.decoded_images import kept_decoded
from kdcore.data.decoding import EncodedImage
from kdcore.data.small_images import decoded_once
from kdcore.data.source import UNLABELLED, Collection, Source
from kdcore.data.streamed_split import TESTS, TRAIN, ImageStore, StreamedCollection
from kdcore.errors import DataError, did_you_mean

_SCHEMA_VERSION = 1
_OPAQUE = (".jpg", ".jpeg")
SUFFIXES = (*_OPAQUE, ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Files(ImageStore):
    """Image files below a folder.

    Args:
        root: the folder.
        names: [N], paths relative to it or absolute, as bytes.
    """

    root: Path
    names: pa.BinaryArray

    def read(self, image_ids: Tensor) -> Iterator[EncodedImage]:
        for image_id in image_ids.tolist():
            path = self.root / os.fsdecode(self.names[image_id].as_py())
            yield EncodedImage(str(path), path)

    def perhaps_transparent(self) -> Tensor:
        suffixes = tuple(suffix.encode() for suffix in _OPAQUE)
        opaque = (name.lower().endswith(suffixes) for name in self.names.to_pylist())
        return torch.tensor([i for i, known in enumerate(opaque) if not known], dtype=torch.int64)


@dataclass(frozen=True)
class ClassFolder:
    """The folder of a class, or one without.

    Args:
        name: relative to the root, or absolute.
        label: of the class, or `UNLABELLED`.
        is_test: whether its images are of the test split.
        files: the names of its images; None for all image files in it.
    """

    name: str
    label: int
    is_test: bool
    files: tuple[str, ...] | None = None


def class_folders(root: Path) -> tuple[tuple[str, ...], list[ClassFolder]]:
    """The class names, and the class folders: first for training, then for the test."""
    parts = [name for name in (TRAIN, *TESTS) if (root / name).is_dir() and folders_in(root / name)]
    if not parts:
        classes = folders_in(root)
        _check_number_of(classes, root)
        return classes, [ClassFolder(name, label, False) for label, name in enumerate(classes)]
    if TRAIN not in parts:
        raise DataError(f"{root} has {parts[0]}, but no {TRAIN} with a folder for each class")
    return train_and_test_folders(root, parts[1] if len(parts) > 1 else None)


def train_and_test_folders(
    root: Path, test: str | None
) -> tuple[tuple[str, ...], list[ClassFolder]]:
    """Likewise, where the names of both parts are known; None for no test split."""
    classes = folders_in(root / TRAIN)
    _check_number_of(classes, root / TRAIN)
    folders = [ClassFolder(f"{TRAIN}/{name}", label, False) for label, name in enumerate(classes)]
    for name in folders_in(root / test) if test else ():
        if name not in classes:
            raise DataError(
                f"{root / str(test)} has a class folder {name!r}, but {root / TRAIN} does not"
                f"{did_you_mean(name, classes)} Rename it or remove it"
            )
        folders.append(ClassFolder(f"{test}/{name}", classes.index(name), True))
    return classes, folders


@dataclass(frozen=True, kw_only=True)
class ImageFolderSource(Source):
    """Opens image folders.

    Args:
        layout: what the root must contain, for messages.
        folders: finds the classes and their folders below the root.
    """

    layout: str = f"{TRAIN}/<class>/<files>"
    folders: Callable[[Path], tuple[tuple[str, ...], list[ClassFolder]]] = class_folders

    def open(self, config: DataConfig, workspace: Path) -> Collection:
        root = config.root
        assert not isinstance(root, str)  # DataConfig refuses URIs here
        if root is None or not root.is_dir():
            what = "missing" if root is None else f"{str(root)!r}, but that is not a folder"
            raise DataError(f"root is {what}; set it to a folder with {self.layout}")
        classes, folders = self.folders(root)
        if config.unlabelled is not None:
            folders += _unlabelled(config.unlabelled, [root / each.name for each in folders])
        identity = [
            (folder.name, (root / folder.name).stat().st_mtime_ns, *(folder.files or ()))
            for folder in folders
        ]
        key = key_of([_SCHEMA_VERSION, str(root.resolve()), identity])
        cache_path = workspace / "data" / f"{config.name}-{key}"

        def collection(batch: pa.RecordBatch) -> StreamedCollection:
            return StreamedCollection(
                labels=tensor_of(batch["label"].to_numpy()),
                is_test=tensor_of(batch["is_test"].to_numpy(zero_copy_only=False)),
                class_names=classes,
                in_channels=3,
                image_size=config.image_size or (0, 0),  # of a table not known yet
                digest=metadata_of(batch)["digest"],
                store=Files(root, batch["name"]),
                view_seed=config.view_seed,
                steps=config.steps(),
                crop=config.centre_crop or USUAL_CROP,
                cache_path=cache_path,
            )

        path = cache_path.with_name(f"{cache_path.name}.arrow")
        images = open_or_make(
            path,
            "list of files",
            lambda: _list(root, folders, classes, config.unlabelled),
            collection,
        )
        images = images.with_test_split(config.test_fraction).over(config.background)
        if config.decodes_once:
            return decoded_once(images)
        return kept_decoded(images, config.decoded_gb)


def _check_number_of(classes: tuple[str, ...], folder: Path) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{folder} has {len(classes)} class folders, but needs at least 2: a folder for each "
            f"class, with its images in it"
        )


def folders_in(folder: Path) -> tuple[str, ...]:
    """The sorted names of the folders in a folder."""
    with os.scandir(folder) as entries:
        return tuple(
            sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            )
        )


def _unlabelled(unlabelled: Path, of_classes: list[Path]) -> list[ClassFolder]:
    """A folder of images without classes, and all folders inside it.

    Args:
        unlabelled: the folder.
        of_classes: the folders of the classes, some of whose images are held out or tested.
    """
    if not unlabelled.is_dir():
        raise DataError(f"unlabelled is {str(unlabelled)!r}, but that is not a folder")
    inside = unlabelled.resolve()
    for each in (folder.resolve() for folder in of_classes):
        if each.is_relative_to(inside) or inside.is_relative_to(each):
            raise DataError(
                f"unlabelled is {str(unlabelled)!r}, but has images of the class folder {each}, of "
                f"which some are held out or tested; leave it out: the training images that "
                f"train_images leaves over are learned from without labels anyway"
            )
    found = sorted(
        folder
        for folder, _, _ in os.walk(unlabelled)
        if not any(part.startswith(".") for part in Path(folder).relative_to(unlabelled).parts)
    )
    return [ClassFolder(folder, UNLABELLED, False) for folder in found]


def _list(
    root: Path, folders: list[ClassFolder], classes: tuple[str, ...], unlabelled: Path | None
) -> pa.RecordBatch:
    """The list of files, sorted within each folder."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    names: list[bytes] = []
    labels: list[int] = []
    is_test: list[bool] = []
    for folder in folders:
        files = _files_of(root, folder)
        if not files and folder.label != UNLABELLED:
            raise DataError(
                f"class folder {root / folder.name} has no files that end in "
                f"{', '.join(SUFFIXES)}; add some or remove it"
            )
        for name, size in files:
            known = name
            if unlabelled is not None and folder.label == UNLABELLED:  # wherever that folder is
                known = os.fsencode(os.path.relpath(os.fsdecode(name), unlabelled))
            digest.update(b"%s\0%d\0" % (known, size))
            names.append(name)
        labels += [folder.label] * len(files)
        is_test += [folder.is_test] * len(files)
    if unlabelled is not None and UNLABELLED not in labels:
        raise DataError(
            f"unlabelled is {str(unlabelled)!r}, but has no files that end in "
            f"{', '.join(SUFFIXES)}; add some or leave it out"
        )
    columns = {
        "name": pa.array(names, pa.binary()),
        "label": pa.array(labels, pa.int64()),
        "is_test": pa.array(is_test),
    }
    return pa.record_batch(columns).replace_schema_metadata({"digest": digest.hexdigest()[:16]})


def _files_of(root: Path, folder: ClassFolder) -> list[tuple[bytes, int]]:
    """The sorted names, relative to the root, and sizes of a class folder's images."""
    if folder.files is not None:
        named = [f"{folder.name}/{name}" for name in sorted(folder.files)]
        return [(os.fsencode(name), _size_of(root / name)) for name in named]
    with os.scandir(root / folder.name) as entries:
        return sorted(
            (os.fsencode(f"{folder.name}/{entry.name}"), entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
        )


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise DataError(f"{path} is missing; unpack the data set again") from None


SOURCE = ImageFolderSource()
