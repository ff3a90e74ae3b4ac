"""Which images, and how they are split: the `data` of an experiment."""

import re
from collections.abc import Mapping
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

from kdcore.data.registry import DATA_SETS
from kdcore.errors import ConfigError, did_you_mean


def _check_name(name: str) -> str:
    if name not in DATA_SETS:
        raise ConfigError(
            f"unknown data set {name!r}{did_you_mean(name, DATA_SETS)} There are {', '.join(DATA_SETS)}"
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
        if not isinstance(value, Mapping) or value.get("name") not in list(DATA_SETS):
            return value
        defaults = DATA_SETS[value["name"]].settings.items()
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
        source = DATA_SETS[self.name]
        for other in DATA_SETS.values():
            for field in other.settings.keys() - source.settings.keys():
                if getattr(self, field) is not None:
                    raise ConfigError(
                        f"{field} is {getattr(self, field)}, but {self.name} has no such setting; "
                        f"leave it out"
                    )
        if isinstance(self.root, str) and not source.takes_uri:
            raise ConfigError(f"root is {self.root!r}, but {self.name} reads local folders only")
        return self
