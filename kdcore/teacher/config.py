"""The configuration of a teacher."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kdcore.backbones.names import check_backbone
from kdcore.errors import ConfigError
from kdcore.networks.config import file_or_published
from kdcore.training.recipe import Recipe


class TeacherConfig(BaseModel):
    """A teacher network, its weights, and how to train it.

    Args:
        backbone: its name in the catalogue.
        weights: file with a state dict, as safetensors or saved by PyTorch; a folder with a student
            that kdsearch has exported, or with a teacher of its own; or, for a network of
            torchvision or timm, the name of published weights, like `IMAGENET1K_V2`, or a tag of
            timm's, like `a1_in1k`. `DEFAULT` for those that the library recommends.
        training: the recipe to train it on the labels, from the weights where they are given: it
            then gets a new head for other classes, and its first convolution is adapted to other
            channels.
        seed: of that training.
        mean: subtracted from pixels on the scale 0 to 1, per channel. By default the folder's, or
            the library's, if weights are given for one of its networks (averaged over channels for
            grey images); else that of the training images.
        std: pixels are then divided by it; required together with the mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Annotated[str, AfterValidator(check_backbone)]
    weights: Path | str | None = None
    training: Recipe | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None

    @field_validator("weights", mode="plain")
    @classmethod
    def _file_or_published(cls, value: object, info: ValidationInfo) -> Path | str | None:
        return file_or_published(value, info.data.get("backbone", ""))

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.weights is None and self.training is None:
            raise ConfigError("needs weights, training or both, but neither is given")
        if self.training is not None and self.weights is None:
            self.training.check_fresh(f"teacher {self.backbone}")
        return self

    @model_validator(mode="after")
    def _nothing_to_prepare(self) -> Self:
        if self.training is not None and self.training.preparation_on_top:
            raise ConfigError(
                "training.preparation_on_top is true, but a teacher learns without a method; leave "
                "it out"
            )
        return self

    @model_validator(mode="after")
    def _mean_with_std(self) -> Self:
        mean, std = len(self.mean or ()), len(self.std or ())
        if mean != std:
            raise ConfigError(
                f"mean has {mean} numbers and std {std}, but both need one per channel"
            )
        return self
