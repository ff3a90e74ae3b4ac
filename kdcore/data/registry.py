"""The data sets and their settings, without importing PyTorch.

The file of the same name opens a data set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataSet:
    """A data set, before it is opened.

    Args:
        summary: one line.
        settings: fields of `DataConfig` that not all data sets have, with their defaults.
        takes_uri: whether its root may be a URI.
    """

    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_uri: bool = False


DATA_SETS: Mapping[str, DataSet] = {
    "digits": DataSet("1,797 scans of handwritten digits, 8x8, bundled with scikit-learn"),
    "fashion_mnist": DataSet("70,000 photographs of clothes, 28x28, grey; read from IDX files"),
    "image_folder": DataSet(
        "image files of any size, in one folder for each class",
        settings={"image_size": (224, 224), "test_fraction": None},
    ),
    "parquet": DataSet(
        "images of any size in Parquet files, in a folder or a bucket",
        settings={
            "image_size": (224, 224),
            "test_fraction": None,
            "image_column": "image",
            "label_column": "label",
        },
        takes_uri=True,
    ),
}
"""By name, in the order in which they are listed."""
