"""What somebody's images are: how many, how large, of which classes."""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdcore import DataConfig
from kdcore.data.augmentation.steps import PAD_CROP
from kdcore.data.decoding import opened_image
from kdcore.data.image_data import source_of
from kdcore.data.image_folder import SUFFIXES, folders_in
from kdcore.data.registry import DATA_SETS
from kdcore.data.streamed_split import TESTS, TRAIN, StreamedCollection
from kdcore.errors import DataError, did_you_mean

# Images that are decoded to see what they are; half a minute for large photographs.
_SAMPLE = 500
# Up to this size and number, images of one size are decoded once, as those of CIFAR: 100,000 of
# 64x64 pixels in three channels are 1.2 GB.
_SMALL_SIDE, _MOST_SMALL_IMAGES = 64, 100_000


@dataclass(frozen=True)
class FoundImages:
    """Images as they were found.

    Args:
        keys: of `data` in the experiment.
        classes: number of training images by class.
        test_images: of the test split.
        height: of the median image, in pixels.
        width: likewise.
        one_size: whether all that were looked at have that size.
        channels: that networks see.
        is_grey: whether all that were looked at are grey.
        any_size: whether images are cropped to a size that can be chosen.
    """

    keys: Mapping[str, Any]
    classes: Mapping[str, int]
    test_images: int
    height: int
    width: int
    one_size: bool
    channels: int
    is_grey: bool
    any_size: bool

    @property
    def training_images(self) -> int:
        """Before any are held out."""
        return sum(self.classes.values())

    @property
    def imbalance(self) -> float:
        """How many times as many images the largest class has as the smallest."""
        return max(self.classes.values()) / max(1, min(self.classes.values()))


def keys_for(
    where: str, root: str | None, image_column: str | None, label_column: str | None
) -> dict[str, Any]:
    """The keys of `data` for what a user names.

    Args:
        where: a folder, a Parquet file, a URI of such, or the name of a data set.
        root: the folder of a data set that is named.
        image_column: of Parquet files; none: found in their schema.
        label_column: likewise.

    Raises:
        DataError: there is no such thing, or it is none of these.
    """
    given = {"image_column": image_column, "label_column": label_column}
    columns = {key: value for key, value in given.items() if value is not None}
    path = Path(where).expanduser()
    if where in DATA_SETS and not (where in ("image_folder", "parquet") or path.exists()):
        return {"name": where} | ({"root": str(Path(root).expanduser().absolute())} if root else {})
    if root is not None:
        raise DataError(f"--root is {root!r}, but belongs to the name of a data set; leave it out")
    if "://" in where:
        return {"name": "parquet", "root": where, **_columns_of(where, columns)}
    if not path.exists():
        raise DataError(
            f"{where!r} is neither a folder, a Parquet file nor a data set"
            f"{did_you_mean(where, DATA_SETS)} The data sets are {', '.join(DATA_SETS)}"
        )
    path = path.absolute()
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(f"{path} is a file, but must be a folder or end in .parquet")
        return {"name": "parquet", "root": str(path), **_columns_of(path, columns)}
    if _has_parquet(path):
        return {"name": "parquet", "root": str(path), **_columns_of(path, columns)}
    if columns:
        raise DataError(f"{next(iter(columns))} is given, but {path} has no Parquet files")
    _check_folder(path)
    return {"name": "image_folder", "root": str(path)}


def _has_parquet(folder: Path) -> bool:
    return next(folder.rglob("*.parquet"), None) is not None


def _check_folder(folder: Path) -> None:
    """Raises DataError for what is no folder of class folders, with what it is instead."""
    layout = "a folder for each class, with its images in it"
    if not any(folder.iterdir()):
        raise DataError(f"{folder} is empty, but must have {layout}")
    top = folder / TRAIN if (folder / TRAIN).is_dir() else folder
    classes = [name for name in folders_in(top) if top != folder or name not in TESTS]
    if classes and (len(classes) > 1 or _images_in(top / classes[0])):
        if len(classes) == 1:
            raise DataError(
                f"{top} has images of one class, {classes[0]!r}, but a classifier needs at least "
                f"two; add a folder with those of another"
            )
        return
    images = _images_in(top)
    if not images and len(classes) == 1:
        raise DataError(f"{top} has no images, but a folder {classes[0]!r}; name that one")
    found = f"{images} images side by side" if images else "no images"
    raise DataError(f"{top} has {found}, but must have {layout}")


def _images_in(folder: Path) -> int:
    return sum(path.name.lower().endswith(SUFFIXES) for path in folder.iterdir())


def _columns_of(root: Path | str, given: Mapping[str, str]) -> dict[str, str]:
    """The columns of Parquet files, where they are not those that kdsearch reads by default.

    Raises:
        DataError: the files cannot be read, or it does not show which columns it are.
    """
    import pyarrow as pa
    from pyarrow import dataset

    try:
        schema = dataset.dataset(str(root), format="parquet").schema
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{root} cannot be read: {str(error).splitlines()[0]}") from None
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {})
    fields = {field.name: field.type for field in schema}
    images = [name for name, kind in fields.items() if _holds_bytes(kind)]
    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    if not labels:
        labels = [
            name
            for name, kind in fields.items()
            if name != "split" and (pa.types.is_integer(kind) or pa.types.is_string(kind))
        ]
    found = {}
    for key, default, candidates in (
        ("image_column", "image", images),
        ("label_column", "label", labels),
    ):
        name = given.get(key) or (default if default in fields else None)
        if name is None:
            if len(candidates) != 1:
                option = key.replace("_", "-")
                raise DataError(
                    f"{root} has no column {default!r}, and {len(candidates)} others that it could "
                    f"be; say which one it is with --{option}. The columns: {', '.join(fields)}"
                )
            (name,) = candidates
        if name != default:
            found[key] = name
    return found


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def look_at(keys: Mapping[str, Any], workspace: Path) -> FoundImages:
    """Opens images, and decodes some of them.

    Args:
        keys: as `keys_for` gives them.
        workspace: folder for what opening them makes.

    Raises:
        DataError: they are missing or damaged.
    """
    config = DataConfig.model_validate(keys)
    images = source_of(config.name).open(config, workspace)
    training = images.labels[~images.is_test]
    counts = training.bincount(minlength=len(images.class_names)).tolist()
    found: dict[str, Any] = {
        "classes": dict(zip(images.class_names, counts, strict=True)),
        "test_images": int(images.is_test.sum()),
        "channels": images.in_channels,
    }
    if not isinstance(images, StreamedCollection):
        height, width = images.image_size
        return FoundImages(
            keys=keys,
            height=height,
            width=width,
            one_size=True,
            is_grey=images.in_channels == 1,
            any_size=False,
            **found,
        )
    sizes, is_grey = _sample(images)
    heights, widths = zip(*sizes, strict=True)
    return _decoded_once(
        FoundImages(
            keys=keys,
            height=round(statistics.median(heights)),
            width=round(statistics.median(widths)),
            one_size=len(set(sizes)) == 1,
            is_grey=is_grey,
            any_size=True,
            **found,
        ),
        workspace,
    )


def _sample(images: StreamedCollection) -> tuple[list[tuple[int, int]], bool]:
    """Height and width of some images, and whether all of these are grey.

    Raises:
        DataError: some cannot be read.
    """
    count = len(images.labels)
    tried = min(count, _SAMPLE)
    ids = torch.arange(tried) * count // tried
    sizes: list[tuple[int, int]] = []
    is_grey, damaged = True, []
    for image in images.store.read(ids):
        try:
            opened = opened_image(image)
        except DataError as error:
            damaged.append(str(error))
            continue
        sizes.append((opened.height, opened.width))
        red, green, blue = opened.split()
        is_grey = is_grey and red.tobytes() == green.tobytes() == blue.tobytes()
    if damaged:
        more = f" ({len(damaged)} of the {len(ids)} that were tried)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0]}{more}")
    return sizes, is_grey


def _decoded_once(found: FoundImages, workspace: Path) -> FoundImages:
    """The same images as a table, where they are small, of one size and not too many."""
    total = found.training_images + found.test_images
    too_large = max(found.height, found.width) > _SMALL_SIDE or total > _MOST_SMALL_IMAGES
    if too_large or not found.one_size:
        return found
    keys = {**found.keys, "augmentation": PAD_CROP}
    config = DataConfig.model_validate(keys)
    try:
        source_of(config.name).open(config, workspace)
    except DataError:  # one that was not looked at has another size
        return found
    return FoundImages(**vars(found) | {"keys": keys, "any_size": False})


def class_counts(counts: Iterable[int]) -> str:
    """The sizes of the smallest and the largest class, in words."""
    low, high = min(counts := list(counts)), max(counts)
    return f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
