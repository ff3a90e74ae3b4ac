"""The training recipe: optimiser, schedule, precision."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdcore.errors import ConfigError

# The step schedule of the distillation literature: epochs 150, 180 and 210 of 240.
_STEP_MILESTONES = (0.625, 0.75, 0.875)


class BaseRecipe(BaseModel):
    """How to train a network, but for the learning rate.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step; an incomplete last batch is dropped.
        optimizer: `sgd` with momentum, or `adamw`.
        momentum: of SGD.
        weight_decay: of all parameters.
        schedule: after the warm-up, `cosine` to zero, `step` (a tenth after 62.5, 75 and 87.5
            percent), or `constant`.
        warmup_epochs: epochs of linear warm-up of the learning rate.
        gradient_clip_norm: maximum norm of the gradients of student and helpers together; None for
            no clipping.
        acceleration: `auto` for the precision and memory layout that were measured to be fastest
            on the device; `off` for float32.
        compile: `torch.compile` the student. Takes about a minute in each process, which pays off
            in long trials, and needs a C++ compiler.
        cuda_graph: replay each epoch's steps as one CUDA graph. Pays off where kernels are shorter
            than their launches; not for methods that synchronise with the device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(ge=1)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["sgd", "adamw"] = "sgd"
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


class Recipe(BaseRecipe):
    """How to train a network; see `BaseRecipe` for all but one of its settings.

    Args:
        learning_rate: after the warm-up.
    """

    learning_rate: float = Field(0.05, gt=0)

    def learning_rate_at(self, progress_epochs: float) -> float:
        """The learning rate after 0 to `epochs` epochs, whole or fractional."""
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
