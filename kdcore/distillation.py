"""Distilling one student once: from a frozen configuration to a stream of epoch reports."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kdcore.backbones import Backbone, Probe, affine_parameters, check_backbone, probe
from kdcore.classifier import build_classifier
from kdcore.data import DataConfig, ImageData, open_data
from kdcore.execution import Execution, fastest_execution
from kdcore.method import Params
from kdcore.methods import CATALOGUE, check_method
from kdcore.taps import Setting
from kdcore.teacher import (
    WEIGHTS,
    TeacherConfig,
    load_teacher,
    prepare_teacher,
    teacher_folder,
)
from kdcore.teacher_cache import CacheConfig, TeacherCache
from kdcore.training import EpochReport, Recipe, Term, default_device, identity_of, train


class TermConfig(BaseModel):
    """A method of an objective, with its settings; those left out have the published values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Annotated[str, AfterValidator(check_method)]
    params: SerializeAsAny[Params]

    @model_validator(mode="before")
    @classmethod
    def _published_unless_given(cls, value: Any) -> Any:
        return {"params": {}, **value} if isinstance(value, Mapping) else value

    @field_validator("params", mode="wrap")
    @classmethod
    def _of_the_method(cls, value: Any, handler: Any, info: ValidationInfo) -> Params:
        if "method" not in info.data:  # unknown, and said so already
            return Params()
        return CATALOGUE[info.data["method"]].Params.model_validate(value)

    def __str__(self) -> str:
        """The method with every searched setting, like `kd(weight=0.9, temperature=4)`."""
        searched = type(self.params).searched()
        settings = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.params
            if name in searched
        )
        return f"{self.method}({settings})" if settings else self.method


class TrialConfig(BaseModel):
    """Everything that decides the numbers of one distillation.

    Args:
        data: the images.
        teacher: the network that teaches.
        student: the name of the network that learns.
        objective: the terms beside cross-entropy; none of them is the control.
        training: the recipe.
        seed: of the student's and the helpers' initial weights, and of the order of the images.
        cache: of the teacher's outputs; none: the teacher computes in every step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig
    teacher: TeacherConfig
    student: Annotated[str, AfterValidator(check_backbone)]
    objective: tuple[TermConfig, ...] = ()
    training: Recipe
    seed: int = Field(0, ge=0, lt=2**32)
    cache: CacheConfig | None = None

    @model_validator(mode="after")
    def _each_method_once(self) -> Self:
        methods = [term.method for term in self.objective]
        if len(set(methods)) < len(methods):
            raise ValueError(f"objective is {methods}, but a method may stand in it only once")
        return self


def setting_of(
    student: str, teacher: str, data: ImageData, teacher_backbone: Backbone | None = None
) -> Setting:
    """What a method is built from, for two networks of the catalogue on these images.

    Args:
        student: the name of the network that learns.
        teacher: the name of the network that teaches.
        data: the images.
        teacher_backbone: the teacher with its weights; none: as it would be before training.

    Raises:
        ValueError: a network is unknown, or the images are too small for it.
    """

    def probed(name: str) -> Probe:
        return probe(
            name,
            num_classes=data.num_classes,
            in_channels=data.in_channels,
            image_size=data.image_size,
        )

    teaching = probed(teacher)
    norms = teaching.fresh_norms
    if teacher_backbone is not None:
        norms = affine_parameters(teacher_backbone)
    return Setting(probed(student).shapes, teaching.shapes, data.train.labels, norms)


def build_terms(objective: tuple[TermConfig, ...], setting: Setting, seed: int) -> tuple[Term, ...]:
    """Builds the methods of an objective; the same seed gives their helpers the same weights.

    Raises:
        ValueError: a method cannot work on these networks; the message says why.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tuple(
            Term(term.method, CATALOGUE[term.method](term.params, setting)) for term in objective
        )


def distill(
    config: TrialConfig,
    *,
    workspace: str | Path = "runs",
    checkpoint_dir: str | Path | None = None,
    device: torch.device | None = None,
    parts: int = 1,
) -> Iterator[EpochReport]:
    """Trains one student and yields a report after each epoch.

    Args:
        config: what to do.
        workspace: a folder for what is made once and kept: image tables and teachers. A teacher
            that is not there yet is trained first.
        checkpoint_dir: where a checkpoint is written before each report. A checkpoint found there
            is continued, with the reports that the uninterrupted run would have given.
        device: where to compute; none: the GPU where there is one.
        parts: for a device without memory for a whole batch: a batch goes through the networks in
            so many parts, one after the other, and their gradients are added up for one step. The
            learning rate stays right, but batch norms, and methods that compare the images of a
            batch, see a part at a time.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; the message names the term.
        ValueError: data, weights or checkpoint are missing or damaged, or a method cannot work
            here.
    """
    workspace = Path(workspace)
    device = device or default_device()
    data = open_data(config.data, workspace)
    student = build_classifier(config.student, data, seed=config.seed)
    execution = teacher_execution = Execution()
    fast = config.training.acceleration == "auto"
    if fast:
        execution = fastest_execution(
            config.student,
            student,
            data.image_size,
            device,
            workspace,
            batch_size=config.training.batch_size,
        )
    teacher = cache = None
    if any(CATALOGUE[term.method].needs for term in config.objective):
        for _ in prepare_teacher(config.teacher, data, workspace, device):
            pass
        folder = teacher_folder(config.teacher, data, workspace)
        teacher = load_teacher(folder)
        if fast:
            teacher_execution = fastest_execution(
                config.teacher.backbone, teacher, data.image_size, device, workspace
            )
        if config.cache is not None:
            cache = TeacherCache(
                config.cache,
                workspace,
                teacher,
                folder / WEIGHTS,
                data,
                device=device,
                execution=teacher_execution,
            )
    setting = setting_of(
        config.student, config.teacher.backbone, data, teacher.backbone if teacher else None
    )
    yield from train(
        student,
        build_terms(config.objective, setting, config.seed),
        teacher,
        data,
        config.training,
        seed=config.seed,
        identity=identity_of(config),
        device=device,
        checkpoint_dir=Path(checkpoint_dir) if checkpoint_dir is not None else None,
        execution=execution,
        teacher_execution=teacher_execution,
        cache=cache,
        parts=parts,
    )
