"""Opens a data set and splits it for training."""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdcore.contract import plugged
from kdcore.contract.plugin import Kind
from kdcore.contract.plugin_faults import told_as
from kdcore.data.arrow_files import key_of
from kdcore.data.augmentation.steps import check_size
from kdcore.data.config import DataConfig
from kdcore.data.own_data import own_source
from kdcore.data.source import UNLABELLED, Source
from kdcore.data.split import Split
from kdcore.data.stratified import stratified_halves
from kdcore.errors import ConfigError, DataError

# Digits as people write them differ by less, street numbers by twice as much.
_UNEQUAL = 1.5


@dataclass(frozen=True)
class ImageData:
    """A data set, split for training.

    Args:
        config: its configuration.
        train: for training, with labels.
        heldout: for ranking trials; the test split where nothing is held out.
        test: for the final students only.
        class_names: the K classes in the order of their labels.
        in_channels: channels of the images.
        image_size: height and width in pixels.
        mean: of the training pixels, per channel, on the scale 0 to 1; estimated for large data
            sets.
        std: likewise.
        digest: of images, labels and splits.
        unlabelled: for training without labels: all images of the training part that are not held
            out, and those without a class, with the label `UNLABELLED`. None unless the
            configuration has a judge.
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
    unlabelled: Split | None = None

    @property
    def taught(self) -> Split:
        """The images that a student learns from with a teacher."""
        return self.train if self.unlabelled is None else self.unlabelled

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def has_unequal_classes(self) -> bool:
        """Whether a class has more than one and a half times the training images of another."""
        images = self.train.labels.bincount(minlength=self.num_classes)
        return bool(images.max() > _UNEQUAL * images.min())

    def view_of(self, epoch: int) -> int:
        """The view of the training images in an epoch, which counts from 1."""
        turn = epoch - 1
        return turn if self.config.views is None else turn % self.config.views


def source_of(name: str) -> Source:
    """The source of the data set with this name.

    Raises:
        DataError: it is of a plugin whose code is not in use.
    """
    if plugged.is_plugged(Kind.DATA, name):
        try:
            return own_source(name, plugged.loaded(Kind.DATA, name))
        except KeyError:
            raise DataError(f"the data set {name!r} is of a plugin that is not in use") from None
    source: Source = importlib.import_module(f"kdcore.data.{name}").SOURCE
    return source


def open_data(config: DataConfig, workspace: Path) -> ImageData:
    """Opens a data set; the first call on a machine may take long, and caches what it prepares.

    Args:
        config: which data set, and how to split it.
        workspace: folder for the cache: a table of the images, or a list of the files and the
            estimated mean and deviation.

    Raises:
        ConfigError: the configuration does not fit the data set.
        DataError: files are missing or damaged, or a split asks for more images than there are.
    """
    source = source_of(config.name)
    if config.download:
        if source.download is None or not isinstance(config.root, Path):
            raise ConfigError(
                f"download is true, but {config.name} "
                + ("needs a root to download to" if source.download else "has nothing to download")
            )
        source.download(config.root)
    with told_as(DataError, f"the data set {config.name} cannot be opened: {{}}".format):
        images = source.open(config, workspace)
    if code := plugged.digest_of_name(Kind.DATA, config.name):
        images = replace(images, digest=key_of([images.digest, code]))
    check_size(config.steps() or (), *images.image_size)
    has_label = images.labels != UNLABELLED
    training_part = (~images.is_test & has_label).nonzero().flatten()
    heldout_images = round(config.heldout_fraction * len(training_part))
    heldout, rest = stratified_halves(
        images.labels[training_part], heldout_images, config.split_seed
    )
    heldout, rest = training_part[heldout], training_part[rest]
    whole = config.heldout_fraction == 0
    if (heldout_images == 0 and not whole) or len(rest) == 0:
        raise DataError(
            f"heldout_fraction is {config.heldout_fraction}, but leaves {heldout_images} images "
            f"held out and {len(rest)} to train on, of {len(training_part)}"
        )
    unlabelled = None
    if config.judge is not None:
        nameless = replace(images, labels=torch.full_like(images.labels, UNLABELLED))
        unlabelled = nameless.split(torch.cat([rest, (~has_label).nonzero().flatten()]))
    if config.train_images is not None:
        if config.train_images > len(rest):
            raise DataError(
                f"train_images is {config.train_images}, but only {len(rest)} are left beside "
                f"{heldout_images} held-out ones"
            )
        chosen, _ = stratified_halves(images.labels[rest], config.train_images, config.split_seed)
        rest = rest[chosen]

    mean, std = images.statistics(rest)
    test = images.split(images.is_test.nonzero().flatten())
    return ImageData(
        config=config,
        train=images.split(rest),
        heldout=test if whole else images.split(heldout),
        test=test,
        class_names=images.class_names,
        in_channels=images.in_channels,
        image_size=images.image_size,
        mean=mean,
        std=std,
        digest=images.digest,
        unlabelled=unlabelled,
    )
