"""TODO-DOC"""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from kdcore.errors import ConfigError

# Where the step schedule divides the learning rate by 10: epochs 150, 180 and 210 of the field's
# 240.
_STEP_MILESTONES = (0.625, 0.75, 0.875)


class Recipe(BaseModel):
    """How a network is trained.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step; a last incomplete batch is left out of its epoch.
        optimizer: `sgd` with momentum, or `adamw`.
        learning_rate: at its peak.
        momentum: of SGD.
        weight_decay: of all parameters.
        schedule: after the warm-up, `cosine` to zero, `step` (a tenth after 62.5, 75 and 87.5
            percent), or `constant`.
        warmup_epochs: linear rise of the learning rate at the start.
        gradient_clip_norm: the largest norm of the gradient of student and helpers together; none:
            no limit.
        acceleration: `auto` takes half precision and the memory layout with which a step was
            measured to be fastest on the device; `off` is float32.
        compile: `torch.compile` the student; worth its minute at the start of each process where
            trials are long. It needs a C++ compiler.
        cuda_graph: on a GPU, replay each epoch's steps as one CUDA graph; worth it where the
            kernels are shorter than their launches. A method that waits for the device cannot.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(ge=1)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    gradient_clip_norm: float | None = Field(None, gt=0)
    acceleration: Literal["auto", "off"] = "auto"
    compile: bool = False
    cuda_graph: bool = False

    @model_validator(mode="after")
    def _warmup_within_budget(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"warmup_epochs is {self.warmup_epochs}, but must be below epochs, which is "
                f"{self.epochs}"
            )
        return self

    def learning_rate_at(self, progress_epochs: float) -> float:
        """The learning rate after so many epochs, 0 to `epochs`."""
        if progress_epochs < self.warmup_epochs:
            return self.learning_rate * progress_epochs / self.warmup_epochs
        share = (progress_epochs - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** sum(
                share >= milestone for milestone in _STEP_MILESTONES
            )
        return self.learning_rate
