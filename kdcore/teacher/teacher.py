"""The frozen teacher: trained or imported once, and reused by later trials and searches."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from pydantic import JsonValue

from kdcore.backbones.ensemble import Ensemble
from kdcore.backbones.names import own_digests
from kdcore.backbones.normalization import Normalization
from kdcore.contract.method import Params
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import benchmark_of
from kdcore.data.image_data import ImageData
from kdcore.errors import ConfigError
from kdcore.execution.execution import Execution
from kdcore.execution.fastest import fastest_execution
from kdcore.execution.workers import Workers
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import (
    Classifier,
    build_classifier,
    describe_classifier,
    load_classifier,
    probe_for,
    save_classifier,
)
from kdcore.networks.initial_weights import (
    InitialWeights,
    begin_with,
    check_classes,
    initial_weights,
    normalization_for,
)
from kdcore.teacher.config import EnsembleConfig, TeacherConfig
from kdcore.training.evaluation import default_device, evaluate_classes, heldout_metrics
from kdcore.training.fine_tuning import fine_tuning
from kdcore.training.judging import check_judged, judged
from kdcore.training.loop import best_student, train
from kdcore.training.recipe import Recipe
from kdcore.training.report import EpochReport
from kdcore.training.run import Term

WEIGHTS = "teacher.safetensors"
"""File name of the weights in a teacher's folder."""

_KD = "kd"  # by which assistants learn, as in their paper


def teacher_folder(
    config: TeacherConfig | EnsembleConfig, data: ImageData, workspace: Path
) -> Path:
    """The folder of a teacher, ready or not. It differs by recipe, seed, data and split; that of an
    ensemble by its teachers' folders, that of an assistant by the folder of what it learns from.

    Raises:
        ConfigError: the mean is of images with another number of channels.
        WeightsError: the weights do not exist, or are known to be of other classes and would not
            be trained.
    """
    if isinstance(config, EnsembleConfig):
        members = [teacher_folder(each, data, workspace).name for each in config.ensemble]
        key = hashlib.sha256(json.dumps(members).encode()).hexdigest()[:12]
        return workspace / "teachers" / f"{data.config.name}-ensemble-{key}"
    if config.assistants:
        above = teacher_folder(config.above, data, workspace)
        settings = _kd_settings(data).model_dump(mode="json")
        own = list(own_digests(config.network).values())
        text = json.dumps([above.name, config.network, settings, *own], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return _folder(config.network, key, data, workspace)
    # What version 0.1.0 wrote of a teacher that is only trained, or only loaded, stays as it was.
    origin: dict[str, JsonValue] = {"backbone": config.backbone}
    if config.training is not None:
        origin = config.model_dump(mode="json", exclude={"weights", "mean", "std"})
    if config.weights is not None:
        weights = initial_weights(config.backbone, config.weights)
        if config.training is None and data.config.judge is None:
            check_classes(weights, data)
        origin |= weights.identity
    if config.mean and config.std:
        if len(config.mean) != data.in_channels:
            raise ConfigError(
                f"mean and std have {len(config.mean)} numbers, but the images have "
                f"{data.in_channels} channels"
            )
        origin |= {"mean": list(config.mean), "std": list(config.std)}
    # The digest identifies the images, wherever they are stored.
    identity = [
        origin,
        data.digest,
        data.config.model_dump(
            mode="json", exclude={"root", "download", "decoded_gb", "unlabelled"}
        ),
        *own_digests(config.backbone).values(),
    ]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return _folder(config.backbone, key, data, workspace)


def _folder(network: str, key: str, data: ImageData, workspace: Path) -> Path:
    name = network.replace("/", "-")
    return workspace / "teachers" / f"{data.config.name}-{name}-{key}"


def is_ready(folder: Path) -> bool:
    """Whether the teacher is there: its folder is created by a rename, so it is complete."""
    return folder.is_dir()


def load_teacher(folder: Path) -> Classifier:
    """Loads a ready teacher, frozen and in evaluation mode."""
    return load_classifier(folder, "teacher").requires_grad_(False)


def prepare_teacher(
    config: TeacherConfig | EnsembleConfig,
    data: ImageData,
    workspace: Path,
    device: torch.device | None = None,
    workers: Workers = Workers(),  # noqa: B008  (frozen)
) -> Iterator[EpochReport]:
    """Trains or imports a teacher unless it is ready; yields a report for each epoch trained. Of an
    ensemble, those of its teachers one after the other, of assistants those of what they learn from
    first.

    An interrupted training is resumed. Other processes wait for the one that trains. Its best epoch
    teaches, by the held-out accuracy; the last where nothing is held out, as in the field's tables.
    It stays the accuracy where a student's epochs are chosen by another metric: a teacher and its
    cached outputs are shared by all that learn from it, and its card has its other metrics.

    Where the data has a judge, that judges the teacher, and its head becomes the linear probe, so
    that weights for any classes will do.

    Args:
        config: which teacher.
        data: the images that it learns from.
        workspace: the teacher goes to a folder under `teachers/`.
        device: where to train; by default the GPU, if there is one.
        workers: this process among those that train it together. The teacher goes to the workspace
            of the first of them, which alone yields reports.

    Raises:
        WeightsError: the weights are missing, damaged, out of reach, or of another network.
    """
    folder = teacher_folder(config, data, workspace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    device = device or default_device()
    if isinstance(config, EnsembleConfig):
        yield from _prepare_ensemble(config, folder, data, workspace, device, workers)
        return
    if config.assistants:
        yield from _prepare_assistant(config, folder, data, workspace, device, workers)
        return
    with _locked(folder, workers):
        if workers.from_first(lambda: is_ready(folder)):
            return
        weights = None
        if config.weights is not None:
            weights = initial_weights(config.backbone, config.weights)
        normalization = _normalization(config, weights, data)
        teacher = build_classifier(
            config.backbone, data, seed=config.seed, normalization=normalization
        )
        if weights is not None:
            trained = config.training is not None or data.config.judge is not None
            begin_with(teacher, config.backbone, weights, data, trained=trained)
        if config.training is not None:
            yield from _trained(
                *(teacher, config.backbone, config, config.training, folder, data, workspace),
                *(device, workers),
            )
        if workers.rank == 0:
            _put(teacher.to(device), config, data, folder)


def _locked(folder: Path, workers: Workers) -> AbstractContextManager[object]:
    """The first process's lock on a teacher's folder, which is for all of them."""
    return FileLock(f"{folder}.lock") if workers.rank == 0 else nullcontext()


def _trained(
    network: Classifier,
    name: str,
    config: TeacherConfig,
    recipe: Recipe,
    folder: Path,
    data: ImageData,
    workspace: Path,
    device: torch.device,
    workers: Workers,
    *,
    terms: Sequence[Term] = (),
    above: Classifier | None = None,
    above_execution: Execution = Execution(),  # noqa: B008  (frozen)
) -> Iterator[EpochReport]:
    """Trains a network; it ends with the weights of its best epoch.

    Args:
        network: the teacher, or an assistant.
        name: of the network.
        config: with the seed.
        recipe: of the training.
        folder: beside which the training's checkpoint is.
        data: the images.
        workspace: keeps what was measured.
        device: where to train.
        workers: the processes that train it.
        terms: what an assistant learns from.
        above: whom it learns from.
        above_execution: of that.
    """
    execution = Execution()
    if recipe.acceleration == "auto":
        size = workers.share_of(recipe.batch_size).images
        asked = name, network, data.image_size, device, workspace
        execution = fastest_execution(*asked, batch_size=size, workers=workers)
    training_dir = _training_dir(folder)
    yield from train(
        network,
        terms,
        above,
        data,
        recipe,
        seed=config.seed,
        identity=folder.name,
        device=device,
        checkpoint_dir=training_dir,
        execution=execution,
        teacher_execution=above_execution,
        tuning=fine_tuning(recipe, name),
        workers=workers,
    )
    if data.config.heldout_fraction and workers.rank == 0:
        network.backbone.load_state_dict(best_student(training_dir)["student"])


def _training_dir(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.training")


def _put(
    teacher: Classifier, config: TeacherConfig | EnsembleConfig, data: ImageData, folder: Path
) -> None:
    """Measures a teacher on the held-out images, and puts it into its folder."""
    if data.config.judge is None:
        found = evaluate_classes(teacher, data.heldout)
    else:
        check_judged(teacher.backbone, config.name)
        found, head = judged(teacher, data.config.judge, data.train, data.heldout)
        teacher.backbone.load_state_dict(head, strict=False)
    metrics = heldout_metrics(found)
    made_by = config.model_dump(mode="json")
    card = describe_classifier(teacher, config.network, data, metrics, made_by)
    partial = folder.with_name(f"{folder.name}.partial")
    save_classifier(partial, "teacher", teacher, card)
    os.replace(partial, folder)
    shutil.rmtree(_training_dir(folder), ignore_errors=True)


def _prepare_assistant(
    config: TeacherConfig,
    folder: Path,
    data: ImageData,
    workspace: Path,
    device: torch.device,
    workers: Workers,
) -> Iterator[EpochReport]:
    """Distils the last assistant from what is above it."""
    # What it learned from need not be there any more.
    if workers.from_first(lambda: is_ready(folder)):
        return
    yield from prepare_teacher(config.above, data, workspace, device, workers)
    with _locked(folder, workers):
        if workers.from_first(lambda: is_ready(folder)):
            return
        recipe = config.training
        assert recipe is not None
        above = _loaded(teacher_folder(config.above, data, workspace), config.above, data, workers)
        execution = Execution()
        if recipe.acceleration == "auto":
            asked = config.above.network, above, data.image_size, device, workspace
            execution = fastest_execution(*asked, workers=workers)
        pair = NetworkPair(
            probe_for(config.network, data).shapes,
            probe_for(config.above.network, data).shapes,
            data.train.labels,
        )
        method = CATALOGUE[_KD](_kd_settings(data), pair)
        assistant = build_classifier(config.network, data, seed=config.seed)
        yield from _trained(
            *(assistant, config.network, config, recipe, folder, data, workspace, device, workers),
            terms=(Term(_KD, method),),
            above=above,
            above_execution=execution,
        )
        if workers.rank == 0:
            _put(assistant.to(device), config, data, folder)


def _loaded(folder: Path, config: TeacherConfig, data: ImageData, workers: Workers) -> Classifier:
    """A ready teacher in all processes; only the first one has its folder."""
    if not workers.together:
        return load_teacher(folder)
    sent = workers.from_first(lambda: _sent(load_teacher(folder)))
    normalization = Normalization(*map(tuple, sent["normalization"]))
    teacher = build_classifier(config.network, data, seed=0, normalization=normalization)
    teacher.backbone.drop_auxiliary()
    teacher.backbone.load_state_dict(sent["weights"])
    return teacher.eval().requires_grad_(False)


def _sent(teacher: Classifier) -> dict[str, Any]:
    return {
        "weights": teacher.backbone.state_dict(),
        "normalization": [list(each) for each in teacher.normalization],
    }


def _kd_settings(data: ImageData) -> Params:
    """Those published for images of this size."""
    kd = CATALOGUE[_KD]
    return kd.Params.model_validate(kd.published_on(benchmark_of(data.image_size)).settings)


def _prepare_ensemble(
    config: EnsembleConfig,
    folder: Path,
    data: ImageData,
    workspace: Path,
    device: torch.device,
    workers: Workers,
) -> Iterator[EpochReport]:
    # Its teachers need not be there any more.
    if workers.from_first(lambda: is_ready(folder)):
        return
    for each in config.ensemble:
        yield from prepare_teacher(each, data, workspace, device, workers)
    if workers.rank > 0:
        return
    with FileLock(f"{folder}.lock"):
        if is_ready(folder):
            return
        folders = [teacher_folder(each, data, workspace) for each in config.ensemble]
        members = [load_teacher(each) for each in folders]
        ensemble = Ensemble([member.backbone for member in members])
        ensemble.normalize_by([member.normalization for member in members])
        unchanged = (0.0,) * data.in_channels, (1.0,) * data.in_channels
        _put(Classifier(ensemble, *unchanged).eval().to(device), config, data, folder)


def _normalization(
    config: TeacherConfig, weights: InitialWeights | None, data: ImageData
) -> Normalization | None:
    """The teacher's own normalisation, or None for that of the data."""
    if config.mean and config.std:
        return Normalization(config.mean, config.std)
    return None if weights is None else normalization_for(weights, data)
