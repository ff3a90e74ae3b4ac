"""Tiny-ImageNet: 110,000 photographs, 64x64, in 200 classes. Le and Yang, CS 231N, Stanford, 2015.

The root, or `tiny-imagenet-200` in it, contains `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG`
and `val/val_annotations.txt`, which names the class of each image in `val`, the test split. The
published test split has no labels, and is ignored.
"""

from collections import defaultdict
from pathlib import Path

from kdcore.data.downloads import download_once
from kdcore.data.image_folder import ClassFolder, ImageFolderSource, folders_in
from kdcore.errors import DataError, did_you_mean

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_FOLDER = "tiny-imagenet-200"
_ANNOTATIONS = "val/val_annotations.txt"
_LAYOUT = f"train/<wnid>/images/*.JPEG, val/images/*.JPEG and {_ANNOTATIONS}"
_ADVICE = f"unpack {_URL} there, or set download: true"


def _base_of(root: Path) -> str:
    """The folder of the data set relative to the root, with a slash, or nothing."""
    return f"{_FOLDER}/" if (root / _FOLDER).is_dir() else ""


def _folders(root: Path) -> tuple[tuple[str, ...], list[ClassFolder]]:
    base = _base_of(root)
    train = root / base / "train"
    if not train.is_dir() or len(folders_in(train)) < 2:
        raise DataError(
            f"root is {str(root)!r}, but it has no train with a folder for each class; {_ADVICE}"
        )
    classes = folders_in(train)
    for name in classes:
        if not (train / name / "images").is_dir():
            raise DataError(
                f"class folder {train / name} has no folder images in it; {_ADVICE}, or name "
                f"image_folder as the data set"
            )
    folders = [
        ClassFolder(f"{base}train/{name}/images", label, False)
        for label, name in enumerate(classes)
    ]
    files = _files_by_class(root / base / _ANNOTATIONS, classes)
    return classes, folders + [
        ClassFolder(f"{base}val/images", label, True, files[name])
        for label, name in enumerate(classes)
        if name in files
    ]


def _files_by_class(path: Path, classes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The images of the test split by wnid. A line has a file, its wnid, and a box."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path} is missing or no text; {_ADVICE}") from None
    files = defaultdict(list)
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if len(fields) != 6 or Path(fields[0]).name != fields[0]:
            raise DataError(
                f"damaged file {path}: line {number} is {line!r}, but must have a file, its class "
                f"and four numbers, with tabs between them; unpack the data set again"
            )
        if fields[1] not in classes:
            raise DataError(
                f"line {number} of {path} has the class {fields[1]!r}, which is not in train"
                f"{did_you_mean(fields[1], classes)} Unpack the data set again"
            )
        files[fields[1]].append(fields[0])
    if not files:
        raise DataError(f"damaged file {path}: it is empty; unpack the data set again")
    return {name: tuple(found) for name, found in files.items()}


def _download(root: Path) -> None:
    def is_complete() -> bool:
        return (root / _base_of(root) / _ANNOTATIONS).is_file()

    def fetch() -> None:
        from torchvision.datasets.utils import download_and_extract_archive  # only for downloads

        download_and_extract_archive(_URL, str(root), md5=_MD5)

    download_once(root, is_complete, fetch, f"unpack {_URL} there yourself")


SOURCE = ImageFolderSource(layout=f"{_LAYOUT}: {_ADVICE}", folders=_folders, download=_download)
