"""The frozen teacher: trained or imported once, and reused by later trials and searches."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock
from pydantic import JsonValue

from kdcore.backbones.normalization import Normalization
from kdcore.data.image_data import ImageData
from kdcore.errors import ConfigError
from kdcore.execution.execution import Execution
from kdcore.execution.fastest import fastest_execution
from kdcore.networks.classifier import (
    Classifier,
    build_classifier,
    describe_classifier,
    load_classifier,
    save_classifier,
)
from kdcore.networks.initial_weights import (
    InitialWeights,
    begin_with,
    check_classes,
    initial_weights,
    normalization_for,
)
from kdcore.teacher.config import TeacherConfig
from kdcore.training.evaluation import default_device, evaluate_classes, heldout_metrics
from kdcore.training.fine_tuning import fine_tuning
from kdcore.training.loop import best_student, train
from kdcore.training.report import EpochReport

WEIGHTS = "teacher.safetensors"
"""File name of the weights in a teacher's folder."""


def teacher_folder(config: TeacherConfig, data: ImageData, workspace: Path) -> Path:
    """The folder of a teacher, ready or not. It differs by recipe, seed, data and split.

    Raises:
        ConfigError: the mean is of images with another number of channels.
        WeightsError: the weights do not exist, or are known to be of other classes and would not
            be trained.
    """
    # What version 0.1.0 wrote of a teacher that is only trained, or only loaded, stays as it was.
    origin: dict[str, JsonValue] = {"backbone": config.backbone}
    if config.training is not None:
        origin = config.model_dump(mode="json", exclude={"weights", "mean", "std"})
    if config.weights is not None:
        weights = initial_weights(config.backbone, config.weights)
        if config.training is None:
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
        data.config.model_dump(mode="json", exclude={"root", "download", "decoded_gb"}),
    ]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    network = config.backbone.replace("/", "-")
    return workspace / "teachers" / f"{data.config.name}-{network}-{key}"


def is_ready(folder: Path) -> bool:
    """Whether the teacher is there: its folder is created by a rename, so it is complete."""
    return folder.is_dir()


def load_teacher(folder: Path) -> Classifier:
    """Loads a ready teacher, frozen and in evaluation mode."""
    return load_classifier(folder, "teacher").requires_grad_(False)


def prepare_teacher(
    config: TeacherConfig, data: ImageData, workspace: Path, device: torch.device | None = None
) -> Iterator[EpochReport]:
    """Trains or imports a teacher unless it is ready; yields a report for each epoch trained.

    An interrupted training is resumed. Other processes wait for the one that trains. Its best epoch
    teaches, by the held-out accuracy; the last where nothing is held out, as in the field's tables.
    It stays the accuracy where a student's epochs are chosen by another metric: a teacher and its
    cached outputs are shared by all that learn from it, and its card has its other metrics.

    Args:
        config: which teacher.
        data: the images that it learns from.
        workspace: the teacher goes to a folder under `teachers/`.
        device: where to train; by default the GPU, if there is one.

    Raises:
        WeightsError: the weights are missing, damaged, out of reach, or of another network.
    """
    folder = teacher_folder(config, data, workspace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    device = device or default_device()
    with FileLock(f"{folder}.lock"):
        if is_ready(folder):
            return
        weights = None
        if config.weights is not None:
            weights = initial_weights(config.backbone, config.weights)
        normalization = _normalization(config, weights, data)
        teacher = build_classifier(
            config.backbone, data, seed=config.seed, normalization=normalization
        )
        if weights is not None:
            trained = config.training is not None
            begin_with(teacher, config.backbone, weights, data, trained=trained)
        training_dir = folder.with_name(f"{folder.name}.training")
        if config.training is not None:
            execution = Execution()
            if config.training.acceleration == "auto":
                execution = fastest_execution(
                    config.backbone,
                    teacher,
                    data.image_size,
                    device,
                    workspace,
                    batch_size=config.training.batch_size,
                )
            yield from train(
                teacher,
                (),
                None,
                data,
                config.training,
                seed=config.seed,
                identity=folder.name,
                device=device,
                checkpoint_dir=training_dir,
                execution=execution,
                tuning=fine_tuning(config.training, config.backbone),
            )
            if data.config.heldout_fraction:
                teacher.backbone.load_state_dict(best_student(training_dir)["student"])
        teacher.to(device)
        metrics = heldout_metrics(evaluate_classes(teacher, data.heldout))
        made_by = config.model_dump(mode="json")
        card = describe_classifier(teacher, config.backbone, data, metrics, made_by)
        partial = folder.with_name(f"{folder.name}.partial")
        save_classifier(partial, "teacher", teacher, card)
        os.replace(partial, folder)
        shutil.rmtree(training_dir, ignore_errors=True)


def _normalization(
    config: TeacherConfig, weights: InitialWeights | None, data: ImageData
) -> Normalization | None:
    """The teacher's own normalisation, or None for that of the data."""
    if config.mean and config.std:
        return Normalization(config.mean, config.std)
    return None if weights is None else normalization_for(weights, data)
