"""The frozen teacher: trained or imported once, found by all later trials and searches."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

import torch
from filelock import FileLock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kdcore.backbones import check_backbone
from kdcore.classifier import (
    Classifier,
    build_classifier,
    describe_classifier,
    load_classifier,
    save_classifier,
)
from kdcore.data import AbsolutePath, ImageData
from kdcore.execution import fastest_execution
from kdcore.training import EpochReport, Recipe, best_student, default_device, evaluate, train

WEIGHTS = "teacher.safetensors"
"""The file of a ready teacher's weights in its folder."""


class TeacherConfig(BaseModel):
    """The network that teaches: either its weights, or how to train it.

    Args:
        backbone: its name in the catalogue.
        weights: a state dict, as safetensors or saved by PyTorch.
        training: the recipe to train it with labels alone.
        seed: of that training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Annotated[str, AfterValidator(check_backbone)]
    weights: AbsolutePath | None = None
    training: Recipe | None = None
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.weights is None) == (self.training is None):
            given = "neither" if self.weights is None else "both"
            raise ValueError(f"of weights and training {given} is given, but a teacher needs one")
        return self


def teacher_folder(config: TeacherConfig, data: ImageData, workspace: Path) -> Path:
    """Where this teacher lies once it is there; another recipe, seed or split gives another folder.

    Raises:
        ValueError: the weights file does not exist.
    """
    if config.weights is None:
        origin = config.model_dump(mode="json", exclude={"weights"})
    else:
        if not config.weights.is_file():
            raise ValueError(f"weights is {str(config.weights)!r}, but there is no such file")
        digest = hashlib.sha256(config.weights.read_bytes()).hexdigest()
        origin = {"backbone": config.backbone, "weights": digest}
    # The root is where the images happen to lie; their digest says what they are.
    identity = [
        origin,
        data.digest,
        data.config.model_dump(mode="json", exclude={"root", "download"}),
    ]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return workspace / "teachers" / f"{data.config.name}-{config.backbone}-{key}"


def is_ready(folder: Path) -> bool:
    """Whether the teacher's folder is complete; it appears by one rename, whole or not at all."""
    return folder.is_dir()


def load_teacher(folder: Path) -> Classifier:
    """A ready teacher, in evaluation mode; no gradient reaches its weights."""
    return load_classifier(folder, "teacher").requires_grad_(False)


def prepare_teacher(
    config: TeacherConfig, data: ImageData, workspace: Path, device: torch.device | None = None
) -> Iterator[EpochReport]:
    """Puts the teacher's folder in place; yields a report for each epoch that had to be trained.

    Nothing is yielded where the teacher is there already, or comes from a weights file. An
    interrupted training goes on where it stopped. A second process waits for the first.

    Args:
        config: which teacher.
        data: what it learns from; the split's digest belongs to the teacher's identity.
        workspace: the folder lies under `teachers/` in it.
        device: where to train; none: the GPU where there is one.

    Raises:
        ValueError: the weights file is missing, damaged, or of another network.
    """
    folder = teacher_folder(config, data, workspace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    device = device or default_device()
    with FileLock(f"{folder}.lock"):
        if is_ready(folder):
            return
        teacher = build_classifier(config.backbone, data, seed=config.seed)
        training_dir = folder.with_name(f"{folder.name}.training")
        if config.training is not None:
            execution = None
            if config.training.acceleration == "auto":
                execution = fastest_execution(
                    config.backbone,
                    teacher,
                    data.image_size,
                    config.training.batch_size,
                    device,
                    workspace,
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
            )
            teacher.backbone.load_state_dict(best_student(training_dir)["student"])
        else:
            assert config.weights is not None
            _load_weights(teacher.backbone, config.weights)
        teacher.to(device)
        accuracy, loss = evaluate(teacher, data.heldout)
        metrics = {"heldout_accuracy": accuracy, "heldout_loss": loss}
        made_by = config.model_dump(mode="json")
        card = describe_classifier(config.backbone, data, metrics, made_by)
        partial = folder.with_name(f"{folder.name}.partial")
        save_classifier(partial, "teacher", teacher, card)
        os.replace(partial, folder)
        shutil.rmtree(training_dir, ignore_errors=True)


def _load_weights(backbone: torch.nn.Module, path: Path) -> None:
    try:
        state: Mapping[str, Tensor] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"weights file {path} cannot be read: {error}") from None
    try:
        backbone.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"weights file {path} does not fit the teacher: {error}") from None
