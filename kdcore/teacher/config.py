"""The configuration of a teacher."""

import os
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

from kdcore.backbones.names import check_backbone, library_name
from kdcore.errors import ConfigError
from kdcore.training.recipe import Recipe


class TeacherConfig(BaseModel):
    """A teacher network, and either its weights or how to train it.

    Args:
        backbone: its name in the catalogue.
        weights: file with a state dict, as safetensors or saved by PyTorch; or, for a network of
            torchvision or timm, the name of published weights, like `IMAGENET1K_V2`, or a tag of
            timm's, like `a1_in1k`. `DEFAULT` for those that the library recommends.
        training: the recipe to train it on the labels.
        seed: of that training.
        mean: subtracted from pixels on the scale 0 to 1, per channel. By default the library's, if
            weights are given for one of its networks (averaged over channels for grey images);
            else that of the training images.
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
        """Published weights stay a string; a file becomes an absolute path."""
        if value is None:
            return None
        if not isinstance(value, str | os.PathLike):
            raise ConfigError(f"weights is {value!r}, but must be a file or a name")
        path = Path(value).expanduser().absolute()
        is_word = path.name == str(value) and not path.suffix
        of_library = library_name(info.data.get("backbone", "")) is not None
        # Whether the library has weights of this name is checked once it is loaded.
        if isinstance(value, str) and of_library and is_word and not path.exists():
            return value
        return path

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.weights is None) == (self.training is None):
            given = "neither is" if self.weights is None else "both are"
            raise ConfigError(f"needs either weights or training, but {given} given")
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
