"""Exported students in MLflow's model registry, the best of them under the alias `champion`."""

import hashlib
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow.pytorch
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from kdcore import load_student
from kdcore.data.image_data import ImageData
from search.errors import TrackingError
from search.export.export import ExportedStudent
from search.record.record import SearchRecord
from search.record.wording import percent

_CHAMPION = "champion"
# Tags of a version.
ACCURACY, DIGEST, _WEIGHTS = "kdsearch.test_accuracy", "kdsearch.test_digest", "kdsearch.weights"


@dataclass(frozen=True)
class Registration:
    """A version in the registry.

    Args:
        name: the registered model.
        version: the version's number.
        is_champion: whether it has the alias `champion`.
        reason: why, or why not.
    """

    name: str
    version: str
    is_champion: bool
    reason: str


def test_digest(data: ImageData) -> str:
    """Identifies a test split; only accuracies on the same one can be compared."""
    digest = hashlib.sha256(f"{data.digest} {data.image_size}".encode())
    digest.update(data.test.labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def register(record: SearchRecord, exported: ExportedStudent) -> Registration:
    """Registers an exported student as `kdsearch-<experiment>`.

    It becomes the champion if there is none, or if it beats the champion on the same test split.
    Weights that are registered already are not registered again.

    Raises:
        TrackingError: MLflow is away, does not know the search, or refuses; or the student cannot
            be exported as a graph.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        return _register(record, exported)
    except (MlflowException, OSError, RuntimeError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise TrackingError(f"not registered in MLflow: {reason}") from None


def _register(record: SearchRecord, exported: ExportedStudent) -> Registration:
    mlflow.set_tracking_uri(record.tracking_uri)
    client = MlflowClient(record.tracking_uri)
    name = f"kdsearch-{record.experiment.name}"
    weights = (exported.folder / "student.safetensors").read_bytes()
    tags = {
        ACCURACY: repr(exported.student.test_accuracy),
        DIGEST: test_digest(exported.data),
        _WEIGHTS: hashlib.sha256(weights).hexdigest(),
        "kdsearch.search": record.name,
        "kdsearch.trial": exported.picked.label,
        "kdsearch.seed": str(exported.picked.seed),
    }
    confirmed = exported.picked.confirmed
    if confirmed is not None:
        tags["kdsearch.mean_test_accuracy"] = repr(confirmed.test_accuracy)
        tags["kdsearch.test_deviation"] = repr(confirmed.test_deviation)
    known = client.search_model_versions(f"name = '{name}'")
    found = next((each for each in known if each.tags.get(_WEIGHTS) == tags[_WEIGHTS]), None)
    if found is None:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        model, run = _log_model(client, record, exported)
        found = client.create_model_version(
            name,
            f"models:/{model}",
            run,
            tags,
            description=(exported.folder / "README.md").read_text(),
            model_id=model,
        )
    champion = _champion(client, name)
    wins, reason = challenge(champion, found, tags)
    if wins:
        client.set_registered_model_alias(name, _CHAMPION, found.version)
    return Registration(name, str(found.version), wins, reason)


def _log_model(
    client: MlflowClient, record: SearchRecord, exported: ExportedStudent
) -> tuple[str, str | None]:
    """Logs the student as a model of its run; returns the ids of both."""
    if record.mlflow_experiment_id is None:
        raise TrackingError(
            f"not registered in MLflow, which does not know {record.name} yet; "
            f"kdsearch resume {record.name} delivers its runs"
        )
    run = _run_of(client, record.mlflow_experiment_id, record, exported)
    data = exported.data
    images = next(data.test.batches(2)).cpu().numpy()
    shape = (-1, data.in_channels, *data.image_size)
    logged = client.create_logged_model(
        record.mlflow_experiment_id,
        name="student",
        source_run_id=run,
        model_type="image classifier",
    )
    mlflow.pytorch.log_model(
        load_student(exported.folder),
        name="student",
        model_id=logged.model_id,
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(np.uint8), shape)]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, data.num_classes))]),
        ),
        input_example=images,
        # A graph without pickled code: serving it needs neither this package nor trust in it.
        serialization_format="pt2",
        pip_requirements=[f"torch=={version('torch').partition('+')[0]}", "numpy"],
    )
    return logged.model_id, run


def _run_of(
    client: MlflowClient, experiment: str, record: SearchRecord, exported: ExportedStudent
) -> str | None:
    """The run that trained these weights, or else the search's run."""
    picked = exported.picked
    wanted = {"role": "trial", "trial": picked.label}
    if picked.confirmed is not None:
        wanted = {"role": "confirmation", "confirmation": Path(picked.checkpoint).name}
    tags = {"search": record.name, **wanted}
    query = " and ".join(f"tags.`kdsearch.{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment], query, max_results=1)
    return found[0].info.run_id if found else record.mlflow_run_id


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    aliases = client.get_registered_model(name).aliases
    if _CHAMPION not in aliases:
        return None
    return client.get_model_version(name, aliases[_CHAMPION])


def challenge(
    champion: ModelVersion | None, challenger: ModelVersion, tags: dict[str, str]
) -> tuple[bool, str]:
    """Whether a version is the champion from now on, and why.

    Args:
        champion: the present champion.
        challenger: the version; it may be the champion itself.
        tags: the challenger's accuracy on the test split, and the split's digest.
    """
    accuracy = float(tags[ACCURACY])
    if champion is None:
        return True, f"the first champion, with {percent(accuracy)} % on the test split"
    if champion.version == challenger.version:
        return True, f"the champion already, with {percent(accuracy)} % on the test split"
    if champion.tags.get(DIGEST) != tags[DIGEST]:
        return (
            False,
            f"version {champion.version} stays the champion: its test split is another one",
        )
    best = float(champion.tags[ACCURACY])
    figures = f"{percent(accuracy)} % on the test split against {percent(best)} %"
    if accuracy > best:
        return True, f"the new champion, with {figures} of version {champion.version}"
    return False, f"version {champion.version} stays the champion: {figures}"
