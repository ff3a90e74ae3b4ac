"""Exported students in MLflow's model registry, the best of them under the alias `champion`."""

import hashlib
import json
import logging
import statistics
from collections.abc import Mapping
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
from torch import Tensor

from kdcore import load_student
from kdcore.data.centre_crop import USUAL_CROP
from kdcore.data.image_data import ImageData
from kdcore.training.metric import Metric
from search.errors import TrackingError
from search.experiment.space.point import TEACHER
from search.export.choice import Candidate
from search.export.export import ExportedStudent
from search.record.paired_gain import PairedGain, paired_gain, unpaired_gain
from search.record.record import SearchRecord
from search.record.wording import METRIC_WORDS, gain_in_words, kind_of, percent, percent_of

_CHAMPION = "champion"
# Tags of a version. Those of a version that an earlier kdsearch registered lack some.
ACCURACY, DIGEST, _WEIGHTS = "kdsearch.test_accuracy", "kdsearch.test_digest", "kdsearch.weights"
METRIC = "kdsearch.metric"  # what its search ranks by; none: the accuracy
BY_SEED: Mapping[Metric, str] = {  # of a confirmed student, JSON
    "accuracy": "kdsearch.test_accuracies",
    "balanced_accuracy": "kdsearch.test_balanced_accuracies",
    "top5": "kdsearch.test_top5s",
}
HELDOUT: Mapping[Metric, str] = {name: f"kdsearch.heldout_{name}" for name in METRIC_WORDS}
HELDOUT_DIGEST = "kdsearch.heldout_digest"
SEARCH, _REASON = "kdsearch.search", "kdsearch.champion"


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
    return _digest(data, data.test.labels)


def heldout_digest(data: ImageData) -> str:
    """Identifies the held-out images, as `test_digest` a test split."""
    return _digest(data, data.heldout.image_ids)


def _digest(data: ImageData, chosen: Tensor) -> str:
    crop = data.config.centre_crop
    cropped = "" if crop is None or crop == USUAL_CROP else f" {crop.model_dump_json()}"
    digest = hashlib.sha256(f"{data.digest} {data.image_size}{cropped}".encode())
    digest.update(chosen.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def register(record: SearchRecord, exported: ExportedStudent) -> Registration:
    """Registers an exported student as `kdsearch-<experiment>`.

    It becomes the champion if there is none, or if it is better: see `challenge`. Weights that are
    registered already are not registered again; what is known of them is brought up to date. The
    version's description is the model card, and why it became the champion, or why not.

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
    tags = _tags(record, exported) | {_WEIGHTS: hashlib.sha256(weights).hexdigest()}
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
            model_id=model,
        )
    else:
        for key, value in tags.items():
            client.set_model_version_tag(name, found.version, key, value)
    champion = _champion(client, name)
    wins, reason = challenge(champion, found, tags)
    story = reason
    if champion is not None and champion.version == found.version:
        story = found.tags.get(_REASON, reason)  # how it became the champion
    client.set_model_version_tag(name, found.version, _REASON, story)
    card = (exported.folder / "README.md").read_text()
    card += f"\n## Champion\n\nVersion {found.version} of {name}: {story}.\n"
    client.update_model_version(name, found.version, card)
    if wins:
        client.set_registered_model_alias(name, _CHAMPION, found.version)
    return Registration(name, str(found.version), wins, reason)


def _tags(record: SearchRecord, exported: ExportedStudent) -> dict[str, str]:
    """What is known of an exported student, and what it is compared by."""
    picked = exported.picked
    confirmed = picked.confirmed
    tags = {
        **{HELDOUT[metric]: repr(share) for metric, share in _heldout(record, picked).items()},
        HELDOUT_DIGEST: heldout_digest(exported.data),
        DIGEST: test_digest(exported.data),
        SEARCH: record.name,
        "kdsearch.trial": picked.label,
        "kdsearch.seed": str(picked.seed),
    }
    if TEACHER in picked.point:
        tags["kdsearch.teacher"] = str(picked.point[TEACHER])
    if record.metric != "accuracy":
        tags[METRIC] = record.metric
    if exported.test_accuracy is not None:
        tags[ACCURACY] = repr(exported.test_accuracy)
    if confirmed is not None:
        tested = confirmed.test_accuracies
        for metric, key in BY_SEED.items():
            shares = {run.seed: run.test(metric) for run in confirmed.runs if run.seed in tested}
            if None not in shares.values():
                tags[key] = json.dumps(shares)
        tags["kdsearch.mean_test_accuracy"] = repr(confirmed.test_accuracy)
        tags["kdsearch.test_deviation"] = repr(confirmed.test_deviation)
    return tags


def _heldout(record: SearchRecord, picked: Candidate) -> dict[Metric, float]:
    """What is known of a student on the held-out images, in its search."""
    known: dict[Metric, float | None] = {"accuracy": picked.heldout_accuracy}
    searched = next((each for each in record.trials if each.number == picked.trial), None)
    if searched is not None and searched.heldout_accuracy is not None:
        known = {metric: searched.heldout(metric) for metric in HELDOUT}
        known |= {record.metric: searched.score}
    elif (again := picked.confirmed) is not None:  # as published, which the search did not try
        known = {"accuracy": again.heldout_accuracy, record.metric: again.heldout_score}
    return {metric: share for metric, share in known.items() if share is not None}


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
    champion: ModelVersion | None, challenger: ModelVersion, tags: Mapping[str, str]
) -> tuple[bool, str]:
    """Whether a version is the champion from now on, and why.

    What counts is what the challenger's search ranks by: accuracy, or another metric. Two confirmed
    students are compared by it on the test split: seed by seed, where they share two seeds. All
    others are compared by it on the held-out images of their searches: the test split, which may
    have been opened for many, must not choose among them. A champion that cannot be compared stays.

    Args:
        champion: the present champion.
        challenger: the version; it may be the champion itself.
        tags: the challenger's.
    """
    if champion is None:
        return True, f"the first champion, with {_figures(tags)}"
    if champion.version == challenger.version:
        return True, f"the champion already, with {_figures(tags)}"
    theirs: Mapping[str, str] = champion.tags
    metric, other = _metric(tags), f"version {champion.version}"
    by_seed, heldout = BY_SEED[metric], HELDOUT[metric]
    stays = f"{other} stays the champion"
    if by_seed in tags and by_seed in theirs:
        if tags[DIGEST] != theirs.get(DIGEST):
            return False, f"{stays}: its test split is another one"
        gain = _gain(_by_seed(tags, metric), _by_seed(theirs, metric))
        seeds = f"paired by {gain.seeds} fresh seeds" if gain.seeds else "with other fresh seeds"
        wins = gain.mean > 0
        of = "" if metric == "accuracy" else f" of{kind_of(metric)}"
        figures = (
            f"{gain_in_words(gain)}, in percentage points{of} on the test split over {other}, "
            f"{seeds}"
        )
    elif heldout not in theirs:
        return False, (
            f"{stays}: an earlier kdsearch registered it, without the held-out "
            f"{METRIC_WORDS[metric]} to compare by; kdsearch best {theirs.get(SEARCH, 'NAME')} "
            f"adds it, or move the alias in MLflow"
        )
    elif tags[HELDOUT_DIGEST] != theirs.get(HELDOUT_DIGEST):
        return False, f"{stays}: its held-out images are others"
    else:
        score, best = float(tags[heldout]), float(theirs[heldout])
        wins = score > best
        figures = (
            f"{percent_of(metric, score)} held out against {percent(best)} % of {other}; "
            f"to tell that from noise, confirm both"
        )
    return wins, f"the new champion: {figures}" if wins else f"{stays}: {figures}"


def _figures(tags: Mapping[str, str]) -> str:
    """How good a version is, with nothing to compare it to."""
    metric = _metric(tags)
    if BY_SEED[metric] not in tags:
        return f"{percent_of(metric, float(tags[HELDOUT[metric]]))} held out"
    scores = _by_seed(tags, metric)
    mean = percent_of(metric, statistics.fmean(scores.values()))
    return f"{mean} on the test split, the mean of {len(scores)} fresh seeds"


def _metric(tags: Mapping[str, str]) -> Metric:
    """What a version is compared by."""
    return next((name for name in METRIC_WORDS if name == tags.get(METRIC)), "accuracy")


def _by_seed(tags: Mapping[str, str], metric: Metric) -> dict[int, float]:
    return {int(seed): score for seed, score in json.loads(tags[BY_SEED[metric]]).items()}


def _gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> PairedGain:
    paired = paired_gain(ours, theirs)
    return paired or unpaired_gain([*ours.values()], [*theirs.values()])
