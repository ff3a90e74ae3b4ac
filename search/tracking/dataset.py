"""TODO-DOC"""

import json

from kdcore.data.image_data import ImageData


def dataset_of(data: ImageData) -> dict[str, str]:
    """The data as MLflow describes a data set, in plain values."""
    root = str(data.config.root or "")
    features = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": _shape(data)}}
    labels = {"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}
    schema = {"features": json.dumps([features]), "targets": json.dumps([labels])}
    splits = {"train": data.train, "heldout": data.heldout, "test": data.test}
    profile = {f"{name}_images": len(split) for name, split in splits.items()}
    return {
        "name": data.config.name,
        "digest": data.digest,
        "source_type": "s3" if root.startswith("s3://") else "local",
        "source": json.dumps({"uri": root or data.config.name}),
        "schema": json.dumps({"mlflow_tensorspec": schema}),
        "profile": json.dumps(profile | {"classes": data.num_classes}),
    }


def _shape(data: ImageData) -> list[int]:
    return [-1, data.in_channels, *data.image_size]
