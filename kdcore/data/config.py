"""The configuration of a data set."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from kdcore.data.colour import Colour, colour_of
from kdcore.data.registry import DATA_SETS, PAD_CROP
from kdcore.errors import ConfigError, did_you_mean


def _check_name(name: str) -> str:
    if name not in DATA_SETS:
        raise ConfigError(
            f"unknown data set {name!r}{did_you_mean(name, DATA_SETS)} "
            f"The data sets are {', '.join(DATA_SETS)}"
        )
    return name


_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class DataConfig(BaseModel):
    """Which data set, and how to split it.

    Args:
        name: of the data set.
        root: its folder; None for bundled data. For `parquet` also a file, or a URI like
            `s3://bucket/folder`.
        download: download missing files to `root`.
        heldout_fraction: share of the training part that is held out to rank trials. 0 trains on
            all of it; the test split then takes the held-out part's place.
        train_images: number of training images, out of the rest; None for all.
        split_seed: of both selections, which are stratified.
        views: number of augmented views of each image, used in turn; None for a new one in each
            epoch.
        view_seed: of the augmentation.
        image_size: height and width in pixels of the crops, for data sets with images of any size;
            by default 224 by 224.
        augmentation: of such data sets. `resized_crop`: images are decoded while a trial trains,
            and views are random resized crops. `pad_crop`: images must have one size, are decoded
            once, and views are crops after padding by an eighth of the shorter side, 4 pixels for
            32x32. Both mirror half of the images.
        test_fraction: share of the images in the test split, for data sets without one; by default
            0.1. The split is stratified and does not depend on `split_seed`.
        image_column: for Parquet files, the column of encoded images; by default `image`.
        label_column: for Parquet files, the column of classes, integers or strings; by default
            `label`.
        background: for folders and Parquet files, the colour behind transparent images: a name
            like `white`, `#rrggbb`, or `[red, green, blue]`, 0 to 255; by default white. Colour
            profiles are ignored. Where an image is transparent, the background is part of the
            data's digest: earlier versions dropped transparency, and their tables, statistics,
            teachers and cached outputs of such data are made again. Those of other data stay valid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_check_name)]
    root: str | Path | None = None  # str as well, because a Path would mangle a URI
    download: bool = False
    heldout_fraction: float = Field(0.1, ge=0, lt=1)
    train_images: int | None = Field(None, ge=1)
    split_seed: int = Field(0, ge=0, lt=2**32)
    views: int | None = Field(None, ge=1)
    view_seed: int = Field(0, ge=0, lt=2**32)
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    augmentation: Literal["resized_crop", "pad_crop"] | None = None
    test_fraction: float | None = Field(None, gt=0, lt=1)
    image_column: str | None = None
    label_column: str | None = None
    background: Annotated[Colour, BeforeValidator(colour_of)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_data_set(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("name") not in list(DATA_SETS):
            return value
        settings = DATA_SETS[value["name"]].settings
        filled = {**value, **{k: v for k, v in settings.items() if value.get(k) is None}}
        if filled.get("augmentation") == PAD_CROP and "augmentation" in settings:
            filled["image_size"] = value.get("image_size")  # images stay as they are
        return filled

    @field_validator("root")
    @classmethod
    def _uri_or_absolute(cls, root: Path | str | None) -> Path | str | None:
        """Makes a path absolute; a URI stays as it is."""
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
        if self.augmentation == PAD_CROP and self.image_size is not None:
            raise ConfigError(
                f"image_size is {self.image_size}, but augmentation is {PAD_CROP}, which takes "
                f"images as they are; leave one of them out"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_the_default_augmentation(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leaves the usual augmentation out, and no background: what was made before they could be
        chosen still fits."""
        content: dict[str, Any] = serialize(self)
        if self.background is None:
            content.pop("background", None)
        if self.augmentation == DATA_SETS[self.name].settings.get("augmentation"):
            content.pop("augmentation", None)
        return content
