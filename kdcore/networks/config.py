"""How a student and the weights of a network are named."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from kdcore.backbones.names import check_backbone, library_name
from kdcore.errors import ConfigError


def file_or_published(value: object, backbone: str) -> Path | str | None:
    """What a key `weights` names: published weights stay a string; a file or a folder becomes an
    absolute path.

    Args:
        value: the key's.
        backbone: name of the network.

    Raises:
        ConfigError: it is neither.
    """
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"weights is {value!r}, but must be a file or a name")
    path = Path(value).expanduser().absolute()
    is_word = path.name == str(value) and not path.suffix
    of_library = library_name(backbone) is not None
    # Whether the library has weights of this name is checked once it is loaded.
    if isinstance(value, str) and of_library and is_word and not path.exists():
        return value
    return path


class StudentConfig(BaseModel):
    """A student network, and the weights that it begins with. A plain name stands for a network
    with fresh weights, and is what is written for one.

    Args:
        backbone: its name in the catalogue.
        weights: as a teacher's, see `kdcore.TeacherConfig`; None for fresh ones. Other classes
            get a new head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Annotated[str, AfterValidator(check_backbone)]
    weights: Path | str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"backbone": check_backbone(value)}
        if not isinstance(value, Mapping | cls):
            raise ConfigError(
                f"is {value!r}, but must be a network's name, or a mapping with backbone and "
                "weights"
            )
        return value

    @field_validator("weights", mode="plain")
    @classmethod
    def _file_or_published(cls, value: object, info: ValidationInfo) -> Path | str | None:
        return file_or_published(value, info.data.get("backbone", ""))

    @model_serializer(mode="wrap")
    def _plain_without_weights(self, handler: SerializerFunctionWrapHandler) -> Any:
        return self.backbone if self.weights is None else handler(self)

    @property
    def label(self) -> str:
        """What the student is called: the network's name, and its weights in parentheses."""
        if self.weights is None:
            return self.backbone
        name = str(self.weights)
        if isinstance(self.weights, Path):
            # A folder that a search exported to is called `best`, as those of other searches.
            parts = self.weights.parts
            name = self.weights.name if self.weights.suffix else "/".join(parts[-2:])
        return f"{self.backbone} ({name})"

    def __str__(self) -> str:
        return self.label
