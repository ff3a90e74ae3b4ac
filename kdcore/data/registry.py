"""The data sets, and what each of them lets its user set; read without loading PyTorch.

The file of this folder that is named like the data set opens it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is opened.

    Args:
        summary: one line for people.
        settings: those fields of `DataConfig` that only some data sets take, with the defaults
            that they have for this one.
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
