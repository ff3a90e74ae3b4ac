"""The files of a published data set of small images: where they lie, and how they are fetched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdcore.data.downloads import download_once
from kdcore.data.image_table import RawImages, TableSource
from kdcore.errors import DataError

AGAIN = "delete it and download it again"


def content_of(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; make it readable") from None


@dataclass(frozen=True)
class Part:
    """The training part or the test split, as its files have it.

    Args:
        images: [N, C, H, W], uint8.
        labels: [N], integers from 0.
        images_file: where the images are from, for messages.
        labels_file: likewise.
        is_test: whether it belongs to the test split.
    """

    images: Tensor
    labels: Tensor
    images_file: Path
    labels_file: Path
    is_test: bool


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """Files with fixed names, in a root folder or where torchvision unpacks them.

    Args:
        title: the data set's name in messages.
        kind: what such a file is called in messages.
        names: of the files.
        below: the folder below the root into which torchvision puts them; `.` for the root.
        reader: torchvision's class, which downloads them.
        settings: of the class, one mapping for each call that it takes to have all files.
        gzipped: whether a file may also be gzipped, with `.gz` after its name.
        hint: where else the files are to be had.
    """

    title: str
    kind: str
    names: Sequence[str]
    below: str
    reader: str
    settings: Sequence[Mapping[str, str]] = ({},)
    gzipped: bool = False
    hint: str = ""

    def find(self, root: Path | None) -> tuple[Path, ...]:
        """The files in the order of their names.

        Raises:
            DataError: there is no root, or a file is missing.
        """
        if root is None:
            raise DataError(
                f"root is missing, but {self.title} is read from files; {self._advice()}"
            )
        for folder in (root, root / self.below):
            found = [self._find_one(folder, name) for name in self.names]
            files = tuple(path for path in found if path is not None)
            if len(files) == len(self.names):
                return files
            if files:
                missing = [name for name, path in zip(self.names, found, strict=True) if not path]
                raise DataError(
                    f"root is {str(root)!r}, but {', '.join(missing)} is missing; {self._advice()}"
                )
        what = f"has no {self.kind}" if root.is_dir() else "is not a folder"
        raise DataError(f"root is {str(root)!r}, but that {what}; {self._advice()}")

    def download(self, root: Path) -> None:
        """Has torchvision download the files if one is missing, while other processes wait."""

        def is_complete() -> bool:
            try:
                self.find(root)
            except DataError:
                return False
            return True

        def fetch() -> None:
            from torchvision import datasets  # only needed for downloads

            for settings in self.settings:
                getattr(datasets, self.reader)(str(root), download=True, **settings)

        download_once(root, is_complete, fetch, f"put the {self.kind}s there yourself")

    def damaged(self, path: Path, reason: str) -> DataError:
        """The error about a damaged file."""
        return DataError(f"damaged {self.kind} {path}: {reason}; {AGAIN}")

    def source(
        self,
        class_names: tuple[str, ...],
        parts: Callable[[tuple[Path, ...]], Sequence[Part]],
        *,
        crop_padding: int,
        flip: bool,
    ) -> TableSource:
        """The data set in these files.

        Args:
            class_names: in the order of their labels.
            parts: reads the files, given in the order of their names.
            crop_padding: pixels of black border for random crops.
            flip: whether to mirror images at random.
        """
        return TableSource(
            class_names=class_names,
            crop_padding=crop_padding,
            flip=flip,
            files=self.find,
            read=lambda paths: self._joined(parts(paths), len(class_names)),
            download=self.download,
        )

    def _joined(self, parts: Sequence[Part], classes: int) -> RawImages:
        """All images of the parts.

        Args:
            parts: in the order of their images' ids.
            classes: number of classes.

        Raises:
            DataError: labels do not fit the images or the classes, or images each other.
        """
        first = parts[0]
        for part in parts:
            images, labels = part.images, part.labels
            if not (images.ndim == 4 and labels.ndim == 1 and 0 < len(images) == len(labels)):
                raise self.damaged(
                    part.labels_file,
                    f"{tuple(labels.shape)} labels do not fit the {tuple(images.shape)} images of "
                    f"{part.images_file}",
                )
            wrong = labels[(labels < 0) | (labels >= classes)]
            if len(wrong):
                raise self.damaged(
                    part.labels_file,
                    f"label {int(wrong[0])} (from 0), but there are {classes} classes",
                )
            if images.shape[1:] != first.images.shape[1:]:
                raise self.damaged(
                    part.images_file,
                    f"its images are {tuple(images.shape[1:])}, those of {first.images_file} "
                    f"{tuple(first.images.shape[1:])}",
                )
        return RawImages(
            torch.cat([part.images for part in parts]),
            torch.cat([part.labels.long() for part in parts]),
            torch.cat([torch.full((len(part.labels),), part.is_test) for part in parts]),
        )

    def _find_one(self, folder: Path, name: str) -> Path | None:
        names = (name, f"{name}.gz") if self.gzipped else (name,)
        return next((folder / each for each in names if (folder / each).is_file()), None)

    def _advice(self) -> str:
        kinds = f"{self.kind}s{', gzipped or not' if self.gzipped else ''}"
        return (
            f"set root to a folder with {', '.join(self.names)} ({kinds}){self.hint}, or set "
            f"download: true to let torchvision download them"
        )
