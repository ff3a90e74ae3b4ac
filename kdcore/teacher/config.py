"""The configuration of a teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from kdcore.backbones.names import check_backbone, ensemble_name
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
        assistants: networks between teacher and student (Mirzadeh et al., arXiv:1902.03393): the
            first is distilled from the teacher, with kd as published and the teacher's recipe, the
            next from the first, and the last one teaches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Annotated[str, AfterValidator(check_backbone)]
    weights: Path | str | None = None
    training: Recipe | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    assistants: tuple[Annotated[str, AfterValidator(check_backbone)], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _more_than_a_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ConfigError(
                f"is {value!r}, but a teacher needs weights or training beside its name, like "
                f"{{backbone: {value}, training: {{epochs: 60}}}}"
            )
        return value

    @property
    def members(self) -> tuple["TeacherConfig", ...]:
        """It alone, which is not an ensemble."""
        return (self,)

    @property
    def networks(self) -> tuple[str, ...]:
        """It, and its assistants."""
        return (self.backbone, *self.assistants)

    @property
    def network(self) -> str:
        """The name of the network that teaches."""
        return self.networks[-1]

    @property
    def name(self) -> str:
        """The network's, with those of its assistants."""
        return " via ".join(self.networks)

    @property
    def above(self) -> "TeacherConfig":
        """What its last assistant learns from."""
        return self.model_copy(update={"assistants": self.assistants[:-1]})

    @model_serializer(mode="wrap")
    def _as_before_without_assistants(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if not self.assistants:
            content.pop("assistants", None)
        return content

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
    def _recipe_of_assistants(self) -> Self:
        for assistant in self.assistants:
            if self.training is None:
                raise ConfigError(
                    f"assistants are {list(self.assistants)}, which learn by the teacher's "
                    f"training, but that is missing; give it, or search for such a student first, "
                    f"and let its exported folder be the weights of a teacher"
                )
            self.training.check_fresh(f"assistant {assistant}")
        return self

    @model_validator(mode="after")
    def _mean_with_std(self) -> Self:
        mean, std = len(self.mean or ()), len(self.std or ())
        if mean != std:
            raise ConfigError(
                f"mean has {mean} numbers and std {std}, but both need one per channel"
            )
        return self


class EnsembleConfig(BaseModel):
    """Teachers that teach together: the mean of their class probabilities, at temperature 1. It has
    logits alone, the logarithms of that mean.

    Args:
        ensemble: two or more teachers, each as by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ensemble: Annotated[tuple[TeacherConfig, ...], Field(min_length=2)]

    @field_validator("ensemble")
    @classmethod
    def _each_once(cls, ensemble: tuple[TeacherConfig, ...]) -> tuple[TeacherConfig, ...]:
        for teacher in ensemble:
            if ensemble.count(teacher) > 1:
                raise ConfigError(f"lists the same {teacher.name} twice; list each once")
        return ensemble

    @property
    def members(self) -> tuple[TeacherConfig, ...]:
        """Its teachers."""
        return self.ensemble

    @property
    def network(self) -> str:
        """The name of its networks together."""
        return ensemble_name(teacher.network for teacher in self.ensemble)

    @property
    def name(self) -> str:
        """The same, with their assistants."""
        return ensemble_name(teacher.name for teacher in self.ensemble)


def _kind(value: object) -> str:
    is_ensemble = isinstance(value, EnsembleConfig) or (
        isinstance(value, Mapping) and "ensemble" in value
    )
    return ENSEMBLE if is_ensemble else TEACHER


TEACHER, ENSEMBLE = TeacherConfig.__name__, EnsembleConfig.__name__
"""Pydantic's tags of the two, which it puts into the places of errors."""

AnyTeacher = Annotated[
    Annotated[TeacherConfig, Tag(TEACHER)] | Annotated[EnsembleConfig, Tag(ENSEMBLE)],
    Discriminator(_kind),
]
"""A teacher, or an ensemble of teachers: `{ensemble: [...]}`."""
