"""Data sets as a trial sees them: three splits, and views of the training images.

Each file of this folder that defines `SOURCE` is a data set; the file's name is its name.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from kdcore.data.image_table import open_image_table
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


class DataConfig(BaseModel):
    """Which images, and how they are split.

    Args:
        name: a data set of this package.
        root: its folder; none for bundled data.
        download: fetch missing files into `root`.
        heldout_fraction: share of the training part that ranks trials and never trains.
        train_images: how many of the other images train; none for all of them.
        split_seed: of both selections, which are stratified.
        views: how many augmented views of each image are in use, in turn; none for a fresh one each
            epoch.
        view_seed: of the augmentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_check_name)]
    root: AbsolutePath | None = None
    download: bool = False
    heldout_fraction: float = Field(0.1, gt=0, lt=1)
    train_images: int | None = Field(None, ge=1)
    split_seed: int = Field(0, ge=0, lt=2**32)
    views: int | None = Field(None, ge=1)
    view_seed: int = Field(0, ge=0, lt=2**32)


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
        mean: of the training pixels, for each channel, on the scale 0 to 1.
        std: of the training pixels, for each channel, on the scale 0 to 1.
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
    """Opens a data set; the first call on a machine converts it, later ones map the file.

    Args:
        config: which data, and how they are split.
        workspace: a folder for what is made once and kept.

    Raises:
        ValueError: files are missing or damaged, or the splits ask for more images than there are.
    """
    source = SOURCES[config.name]
    if config.download:
        if source.download is None or config.root is None:
            raise ValueError(
                f"download is true, but {config.name} "
                + ("needs a root to download to" if source.download else "has nothing to download")
            )
        source.download(config.root)
    table = open_image_table(config.name, source, config.root, workspace)
    training_part = (~table.is_test).nonzero().flatten()
    heldout_images = round(config.heldout_fraction * len(training_part))
    heldout, rest = stratified_halves(
        table.labels[training_part], heldout_images, config.split_seed
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
        chosen, _ = stratified_halves(table.labels[rest], config.train_images, config.split_seed)
        rest = rest[chosen]

    def split(positions: Tensor) -> TableSplit:
        return TableSplit(
            table.images[positions],
            table.labels[positions],
            positions,
            config.view_seed,
            source.crop_padding,
            source.flip,
        )

    train = split(rest)
    pixels = train.images.transpose(0, 1).flatten(1).double() / 255
    return ImageData(
        config=config,
        train=train,
        heldout=split(heldout),
        test=split(table.is_test.nonzero().flatten()),
        class_names=source.class_names,
        in_channels=table.images.shape[1],
        image_size=(table.images.shape[2], table.images.shape[3]),
        mean=tuple(pixels.mean(1).tolist()),
        std=tuple(pixels.std(1).tolist()),
        digest=table.digest,
    )
