"""Data sets as a trial sees them: three splits, and views of the training images.

Each file of this folder that defines `SOURCE` is a data set; the file's name is its name. There are
two kinds:

- Small images of one size, which `image_table` keeps in one memory-mapped Arrow file: a
  `TableSplit` has all its pixels in one tensor, and makes views by tensor operations.
- Photographs of any size, which `image_folder` and `parquet` leave where they are: a
  `StreamedSplit` reads and decodes the images of the next batches in processes of their own, while
  the trial trains on the last one.

Whatever the kind, view v of image i is the same pixels in every batch, order, process and trial.
"""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from kdcore.data.source import Source
from kdcore.data.split import Split, TableSplit
from kdcore.data.splits import stratified_halves
from kdcore.suggestion import did_you_mean

__all__ = ["SOURCES", "AbsolutePath", "DataConfig", "ImageData", "Split", "TableSplit", "open_data"]


def _collect() -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        if hasattr(module, "SOURCE"):
            sources[found.name] = module.SOURCE
    return sources


SOURCES: Mapping[str, Source] = _collect()
"""Name -> data set."""


AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A path that means the same in every process, whatever its working folder."""


def _check_name(name: str) -> str:
    if name not in SOURCES:
        raise ValueError(
            f"unknown data set {name!r}{did_you_mean(name, SOURCES)} There are {', '.join(SOURCES)}"
        )
    return name


_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class DataConfig(BaseModel):
    """Which images, and how they are split.

    Args:
        name: a data set of this package.
        root: its folder; none for bundled data. For `parquet` also a file, or a URI like
            `s3://bucket/folder`.
        download: fetch missing files into `root`.
        heldout_fraction: share of the training part that ranks trials and never trains.
        train_images: how many of the other images train; none for all of them.
        split_seed: of both selections, which are stratified.
        views: how many augmented views of each image are in use, in turn; none for a fresh one each
            epoch.
        view_seed: of the augmentation.
        image_size: height and width in pixels that images are cut to, of data sets where they
            differ: 224 by 224.
        test_fraction: share of the images that is the test split, of data sets that come without
            one: 0.1. It is stratified, and the same whatever `split_seed` is.
        image_column: of Parquet files: the column of encoded images, `image`.
        label_column: of Parquet files: the column of classes, integers or strings, `label`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_check_name)]
    root: str | Path | None = None  # in this order: no URI may become a path
    download: bool = False
    heldout_fraction: float = Field(0.1, gt=0, lt=1)
    train_images: int | None = Field(None, ge=1)
    split_seed: int = Field(0, ge=0, lt=2**32)
    views: int | None = Field(None, ge=1)
    view_seed: int = Field(0, ge=0, lt=2**32)
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    test_fraction: float | None = Field(None, gt=0, lt=1)
    image_column: str | None = None
    label_column: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_data_set(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("name") not in list(SOURCES):
            return value
        defaults = SOURCES[value["name"]].settings.items()
        return {**value, **{k: v for k, v in defaults if value.get(k) is None}}

    @field_validator("root")
    @classmethod
    def _uri_or_absolute(cls, root: Path | str | None) -> Path | str | None:
        """Makes a path mean the same in every process; a URI does, and stays as it is."""
        if root is None or (isinstance(root, str) and _URI.match(root)):
            return root
        return Path(root).expanduser().absolute()

    @model_validator(mode="after")
    def _only_what_the_data_set_takes(self) -> Self:
        source = SOURCES[self.name]
        for other in SOURCES.values():
            for field in other.settings.keys() - source.settings.keys():
                if getattr(self, field) is not None:
                    raise ValueError(
                        f"{field} is {getattr(self, field)}, but {self.name} has no such setting; "
                        f"leave it out"
                    )
        if isinstance(self.root, str) and not source.takes_uri:
            raise ValueError(f"root is {self.root!r}, but {self.name} reads local folders only")
        return self


@dataclass(frozen=True)
class ImageData:
    """A data set, split and ready to be trained on.

    Args:
        config: what it was made from.
        train: the images that train.
        heldout: the images that rank trials.
        test: the images that only the chosen students see.
        class_names: the K classes in the order of their labels.
        in_channels: channels of the images.
        image_size: height and width in pixels.
        mean: of the training pixels, for each channel, on the scale 0 to 1; of large data sets
            estimated.
        std: likewise.
        digest: of images, labels and splits.
    """

    config: DataConfig
    train: Split
    heldout: Split
    test: Split
    class_names: tuple[str, ...]
    in_channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def view_of(self, epoch: int) -> int:
        """The view of the training images that an epoch, from 1, shows."""
        turn = epoch - 1
        return turn if self.config.views is None else turn % self.config.views


def open_data(config: DataConfig, workspace: Path) -> ImageData:
    """Opens a data set; the first call on a machine does what takes long, and keeps it.

    Args:
        config: which data, and how they are split.
        workspace: a folder for what is made once and kept: a table of the images, or a list of them
            and the estimate of their mean.

    Raises:
        ValueError: files are missing or damaged, or the splits ask for more images than there are.
    """
    source = SOURCES[config.name]
    if config.download:
        if source.download is None or not isinstance(config.root, Path):
            raise ValueError(
                f"download is true, but {config.name} "
                + ("needs a root to download to" if source.download else "has nothing to download")
            )
        source.download(config.root)
    images = source.open(config, workspace)
    training_part = (~images.is_test).nonzero().flatten()
    heldout_images = round(config.heldout_fraction * len(training_part))
    heldout, rest = stratified_halves(
        images.labels[training_part], heldout_images, config.split_seed
    )
    heldout, rest = training_part[heldout], training_part[rest]
    if heldout_images == 0 or len(rest) == 0:
        raise ValueError(
            f"heldout_fraction is {config.heldout_fraction}, but leaves {heldout_images} images "
            f"held out and {len(rest)} to train on, of {len(training_part)}"
        )
    if config.train_images is not None:
        if config.train_images > len(rest):
            raise ValueError(
                f"train_images is {config.train_images}, but only {len(rest)} are left beside "
                f"{heldout_images} held-out ones"
            )
        chosen, _ = stratified_halves(images.labels[rest], config.train_images, config.split_seed)
        rest = rest[chosen]

    mean, std = images.statistics(rest)
    return ImageData(
        config=config,
        train=images.split(rest),
        heldout=images.split(heldout),
        test=images.split(images.is_test.nonzero().flatten()),
        class_names=images.class_names,
        in_channels=images.in_channels,
        image_size=images.image_size,
        mean=mean,
        std=std,
        digest=images.digest,
    )
