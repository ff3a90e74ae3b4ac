"""The data sets and their settings, without importing PyTorch.

The file of the same name opens a data set.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdcore.contract import plugged
from kdcore.contract.plugin import Kind
from kdcore.data.augmentation.steps import PAD_CROP, RESIZED_CROP


@dataclass(frozen=True)
class DataSet:
    """A data set, before it is opened.

    Args:
        summary: one line.
        settings: fields of `DataConfig` that not all data sets have, with their defaults.
        takes_uri: whether its root may be a URI.
        usual_views: those of the data set where `augmentation` says nothing else.
    """

    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_uri: bool = False
    usual_views: str = PAD_CROP


_OWN: Mapping[str, DataSet] = {
    "digits": DataSet("1,797 scans of handwritten digits, 8x8, bundled with scikit-learn"),
    "mnist": DataSet("70,000 handwritten digits, 28x28, grey; read from IDX files"),
    "fashion_mnist": DataSet("70,000 photographs of clothes, 28x28, grey; read from IDX files"),
    "cifar10": DataSet("60,000 photographs, 32x32, in 10 classes"),
    "cifar100": DataSet("60,000 photographs, 32x32, in 100 classes"),
    "svhn": DataSet("99,289 photographs of house numbers' digits, 32x32"),
    "stl10": DataSet("13,000 photographs, 96x96, in 10 classes"),
    "tiny_imagenet": DataSet(
        "110,000 photographs, 64x64, in 200 classes",
        settings={
            "image_size": (64, 64),
            "augmentation": PAD_CROP,
            "decoded_gb": None,
            "evaluation": None,
        },
    ),
    "imagenet": DataSet(
        "1,331,167 photographs of any size, in 1,000 classes",
        settings={"image_size": (224, 224), "decoded_gb": None, "evaluation": None},
        usual_views=RESIZED_CROP,
    ),
    "image_folder": DataSet(
        "image files of any size, in one folder for each class",
        settings={
            "image_size": (224, 224),
            "augmentation": RESIZED_CROP,
            "test_fraction": None,
            "background": None,
            "decoded_gb": None,
            "evaluation": None,
            "unlabelled": None,
        },
        usual_views=RESIZED_CROP,
    ),
    "parquet": DataSet(
        "images of any size in Parquet files, in a folder or a bucket",
        settings={
            "image_size": (224, 224),
            "augmentation": RESIZED_CROP,
            "test_fraction": None,
            "background": None,
            "decoded_gb": None,
            "evaluation": None,
            "image_column": "image",
            "label_column": "label",
        },
        takes_uri=True,
        usual_views=RESIZED_CROP,
    ),
}
plugged.reserve(Kind.DATA, _OWN)

OF_A_PLUGIN = DataSet("of a plugin")


class _DataSets(Mapping[str, DataSet]):
    def __getitem__(self, name: str) -> DataSet:
        if name in _OWN:
            return _OWN[name]
        if plugged.is_plugged(Kind.DATA, name):
            return OF_A_PLUGIN
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter((*_OWN, *plugged.names_of(Kind.DATA)))

    def __len__(self) -> int:
        return len(list(iter(self)))


DATA_SETS: Mapping[str, DataSet] = _DataSets()
"""By name, in the order in which they are listed; then those of plugins."""


def data_set_of(name: str) -> DataSet:
    """The data set of a configuration. Its name was known when it was read; in a record of a search
    that may have been a plugin's, which is not in use."""
    return DATA_SETS.get(name, OF_A_PLUGIN)
