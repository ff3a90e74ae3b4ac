"""The configuration of a data set."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from kdcore.data.augmentation.steps import (
    BASIC,
    PAD_CROP,
    RESIZED_CROP,
    Augmentation,
    Flip,
    PadCrop,
    RandomResizedCrop,
    Step,
    expanded,
    mixes,
    parse_augmentation,
    resizes,
    written,
)
from kdcore.data.centre_crop import USUAL_CROP, CentreCrop
from kdcore.data.colour import Colour, colour_of
from kdcore.data.registry import DATA_SETS, DataSet, data_set_of
from kdcore.errors import ConfigError, did_you_mean


def _check_name(name: str) -> str:
    if name not in DATA_SETS:
        raise ConfigError(
            f"unknown data set {name!r}{did_you_mean(name, DATA_SETS)} "
            f"The data sets are {', '.join(DATA_SETS)}"
        )
    return name


OF_WEIGHTS = "weights"
"""In the place of an evaluation: that which the networks' weights were made for."""

Judge = Literal["linear_probe", "knn"]
"""What tells how good features are: a classifier that is fitted to them."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def _decodes_once(augmentation: Any, data_set: DataSet) -> bool:
    """Whether these views are of a table of pixels."""
    try:
        parsed = parse_augmentation(augmentation)
    except ConfigError:  # told where the field is checked
        parsed = None
    resized = None if parsed is None else resizes(parsed)
    return data_set.usual_views == PAD_CROP if resized is None else not resized


def _sides(size: Any) -> Any:
    """Height and width, of both or of one number for both."""
    sides = (size, size) if isinstance(size, int) else size
    is_pair = isinstance(sides, Sequence) and len(sides) == 2
    if not is_pair or not all(type(side) is int and side > 0 for side in sides):
        raise ConfigError(
            f"is {size!r}, but must be pixels, 1 or more: one number, like 224, or height and "
            f"width, like [224, 160]"
        )
    return sides


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
        image_size: height and width in pixels of the crops, or one number for both, for data sets
            with images of any size; by default 224 by 224.
        augmentation: a preset or a list of steps, each a name or a name with its parameters, which
            are those of torchvision.transforms.v2. The presets: `basic`, the data set's usual
            views; `imagenet` adds colours to resized crops; `strong` adds RandAugment, random
            erasing, mixup and CutMix to the usual views; `patient`, resized crops and mixup
            (arXiv:2106.05237). The steps are in `kdcore.data.augmentation.steps`. Data sets of
            images of any size have two more. `resized_crop`: images are decoded while a trial
            trains, and views are random resized crops. `pad_crop`: images must have one size, are
            decoded once, and views are crops after padding by an eighth of the shorter side, 4
            pixels for 32x32. Both mirror half of the images. There, a list with
            `random_resized_crop` decodes while training, and any other once.
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
        decoded_gb: for images of any size that are decoded while training, gigabytes of pixels
            that are kept decoded below the workspace, for all trials of a machine; 0 or None for
            none. They are decoded when the data is opened first, in its order, as many as fit, and
            views stay the same to the bit. Pixels take many times the space of files, and only what
            fits into the machine's free memory is faster, so none are kept unless asked for.
        evaluation: for images of any size that are decoded while training, how images are cropped
            where they are not augmented, see `CentreCrop`. An experiment may say `weights` for what
            its networks' weights were made for, and with it leave `image_size` to them; that is
            replaced by numbers before the data is opened, see `evaluated_as_weights`.
        judge: set, students learn from the teacher alone, without labels, on the whole training
            part but for what is held out; `train_images` of these are the labelled ones. Networks
            are judged by a classifier on their features, which is fitted to those of the labelled
            images: a `linear_probe`, or the nearest neighbours, `knn`; see
            `kdcore.training.judging`. The control learns from the labelled images and their labels.
        unlabelled: for folders, one with more images to learn from without labels, also in folders
            inside it; with it, `judge` is by default `linear_probe`.
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
    image_size: Annotated[tuple[int, int], BeforeValidator(_sides)] | None = None
    augmentation: Annotated[Augmentation | None, BeforeValidator(parse_augmentation)] = None
    test_fraction: float | None = Field(None, gt=0, lt=1)
    image_column: str | None = None
    label_column: str | None = None
    background: Annotated[Colour, BeforeValidator(colour_of)] | None = None
    decoded_gb: float | None = Field(None, ge=0, allow_inf_nan=False)
    evaluation: CentreCrop | Literal["weights"] | None = None
    judge: Judge | None = None
    unlabelled: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_data_set(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or str(value.get("name")) not in DATA_SETS:
            return value
        data_set = DATA_SETS[value["name"]]
        settings = data_set.settings
        if value.get("augmentation") == BASIC:
            value = {**value, "augmentation": None}
        if value.get("unlabelled") is not None and value.get("judge") is None:
            value = {**value, "judge": "linear_probe"}
        filled = {**value, **{k: v for k, v in settings.items() if value.get(k) is None}}
        stay = "augmentation" in settings and _decodes_once(filled["augmentation"], data_set)
        if stay or value.get("evaluation") == OF_WEIGHTS:
            filled["image_size"] = value.get("image_size")  # that of the images, or of the weights
        return filled

    @field_validator("root")
    @classmethod
    def _uri_or_absolute(cls, root: Path | str | None) -> Path | str | None:
        """Makes a path absolute; a URI stays as it is."""
        if root is None or (isinstance(root, str) and _URI.match(root)):
            return root
        return Path(root).expanduser().absolute()

    @field_validator("unlabelled")
    @classmethod
    def _absolute(cls, unlabelled: Path | None) -> Path | None:
        return None if unlabelled is None else unlabelled.expanduser().absolute()

    @field_validator("evaluation", mode="before")
    @classmethod
    def _crop_or_word(cls, value: Any) -> Any:
        if value is None or value == OF_WEIGHTS or isinstance(value, CentreCrop):
            return value
        if not isinstance(value, Mapping):
            meant = did_you_mean(value, (OF_WEIGHTS,)) if isinstance(value, str) else ""
            raise ConfigError(
                f"is {value!r}, but must be numbers, like {USUAL_CROP}, or {OF_WEIGHTS!r}{meant}"
            )
        return CentreCrop.model_validate(value)

    @model_validator(mode="after")
    def _only_what_the_data_set_takes(self) -> Self:
        source = data_set_of(self.name)
        for other in DATA_SETS.values():
            for field in other.settings.keys() - source.settings.keys() - {"augmentation"}:
                if getattr(self, field) is not None:
                    raise ConfigError(
                        f"{field} is {getattr(self, field)}, but {self.name} has no such setting; "
                        f"leave it out"
                    )
        if isinstance(self.root, str) and not source.takes_uri:
            raise ConfigError(f"root is {self.root!r}, but {self.name} reads local folders only")
        self._check_augmentation(source)
        return self

    def _check_augmentation(self, source: DataSet) -> None:
        choice = "augmentation" in source.settings
        if not choice and self.augmentation in (PAD_CROP, RESIZED_CROP):
            raise ConfigError(
                f"augmentation is {self.augmentation}, but {self.name} has no such setting; leave "
                f"it out"
            )
        said = self.augmentation if isinstance(self.augmentation, str) else "a list of steps"
        if self.decodes_once and choice and self.image_size is not None:
            raise ConfigError(
                f"image_size is {self.image_size}, but augmentation is {said}, which takes "
                f"images as they are; leave one of them out"
            )
        if self.decodes_once and choice and self.decoded_gb:
            raise ConfigError(
                f"decoded_gb is {self.decoded_gb:g}, but augmentation is {said}, which decodes all "
                f"images once anyway; leave one of them out"
            )
        if self.decodes_once and choice and self.evaluation is not None:
            raise ConfigError(
                f"evaluation is {self.evaluation}, but augmentation is {said}, which takes images "
                f"as they are; leave one of them out"
            )
        if not choice and source.usual_views == RESIZED_CROP and self.decodes_once:
            raise ConfigError(
                f"augmentation has no {RandomResizedCrop.name}, but {self.name} has images of any "
                f"size; begin the list with it"
            )

    @property
    def decodes_once(self) -> bool:
        """Whether images of any size are decoded once, into a table, and not while training."""
        return _decodes_once(self.augmentation, data_set_of(self.name))

    @property
    def centre_crop(self) -> CentreCrop | None:
        """How evaluation crops images; None where it shows them as they are.

        Raises:
            ConfigError: the networks' weights are to say, and nobody has asked them.
        """
        if "evaluation" not in data_set_of(self.name).settings or self.decodes_once:
            return None
        if isinstance(self.evaluation, str):
            raise ConfigError(
                f"evaluation is {self.evaluation!r}, which stands for what an experiment's weights "
                f"were made for; here it must be numbers, like {USUAL_CROP}"
            )
        return self.evaluation or USUAL_CROP

    def steps(self, *, flip: bool = True) -> tuple[Step, ...] | None:
        """All steps of the views; None for the data set's usual ones.

        Args:
            flip: whether the usual views are mirrored at random.
        """
        if self.augmentation in (None, PAD_CROP, RESIZED_CROP):
            return None
        resized = data_set_of(self.name).usual_views == RESIZED_CROP
        crop = RandomResizedCrop() if resized else PadCrop()
        return expanded(self.augmentation, (crop, Flip()) if flip else (crop,))

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, and so their labels."""
        return mixes(self.augmentation)

    @field_serializer("augmentation")
    def _as_in_a_file(self, augmentation: Augmentation | None) -> Any:
        return written(augmentation)

    @model_serializer(mode="wrap")
    def _without_the_default_augmentation(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leaves the usual augmentation out, and later keys that are not set: what was made before
        they could be chosen still fits."""
        content: dict[str, Any] = serialize(self)
        for key in ("background", "decoded_gb", "judge", "unlabelled"):
            if not getattr(self, key):
                content.pop(key, None)
        if self.evaluation in (None, USUAL_CROP):
            content.pop("evaluation", None)
        if self.augmentation == data_set_of(self.name).settings.get("augmentation"):
            content.pop("augmentation", None)
        return content
