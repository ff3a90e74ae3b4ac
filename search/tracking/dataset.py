"""A search's data set, described the way MLflow describes data sets."""

import json

from kdcore.data.image_data import ImageData


def describe_dataset(data: ImageData) -> dict[str, str]:
    """The arguments of `mlflow.entities.Dataset` for these images."""
    root = str(data.config.root or "")
    shape = [-1, data.in_channels, *data.image_size]
    features = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": shape}}
    labels = {"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}
    schema = {"features": json.dumps([features]), "targets": json.dumps([labels])}
    splits = {"train": data.train, "heldout": data.heldout, "test": data.test}
    if data.unlabelled is not None:
        splits["unlabelled"] = data.unlabelled
    profile = {f"{name}_images": len(split) for name, split in splits.items()}
    return {
        "name": data.config.name,
        "digest": data.digest,
        "source_type": "s3" if root.startswith("s3://") else "local",
        "source": json.dumps({"uri": root or data.config.name}),
        "schema": json.dumps({"mlflow_tensorspec": schema}),
        "profile": json.dumps(profile | {"classes": data.num_classes}),
    }
