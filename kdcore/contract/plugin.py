"""A user's own code: a Python file, or a module of a package, with methods, networks or data sets.

The file may define, each a mapping by name, what the catalogue has one file for:

- `METHODS`: classes of `kdcore.contract.method.Method`. A file with one such class and no mapping
  names the method, as in the catalogue.
- `NETWORKS`: functions of (num_classes, in_channels) that give a `Backbone`, or any `nn.Module`,
  see `kdcore.backbones.own_network`.
- `DATA_SETS`: each a `Source`, or a function that gives two `torch.utils.data.Dataset`, see
  `kdcore.data.own_data`.

Its text is part of the plugin, so that the code goes wherever the experiment goes. Nothing is run
before `kdcore.contract.plugin_code.provided_by`.
"""

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from kdcore.errors import PluginError

_MOST_TEXT = 2**20


class Kind(StrEnum):
    """What a plugin may add to; the groups of entry points are `kdsearch.methods` and so on."""

    METHODS = "methods"
    BACKBONES = "backbones"
    DATA = "data"


WORDS: Mapping[Kind, str] = {
    Kind.METHODS: "method",
    Kind.BACKBONES: "network",
    Kind.DATA: "data set",
}


def digest_of(module: str, sources: Mapping[str, str]) -> str:
    """Of a module and all texts that it may import."""
    return hashlib.sha256(json.dumps([module, sources], sort_keys=True).encode()).hexdigest()[:16]


class Plugin(BaseModel):
    """A user's code, before it is run.

    Args:
        name: as its user wrote it, like `my_losses.py` or `my_package.networks`.
        module: the module to import, from the root of the sources.
        digest: of module and sources.
        methods: names of the methods that it adds.
        backbones: names of its networks.
        data: names of its data sets.
        sources: by path, the texts of the file, or of its package; empty for an installed package,
            which every machine must have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    module: str
    digest: str
    methods: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    sources: dict[str, str] = {}

    def names(self, kind: Kind) -> tuple[str, ...]:
        """The names that it adds of a kind."""
        names: tuple[str, ...] = getattr(self, kind)
        return names

    def __str__(self) -> str:
        has = [f"{WORDS[kind]} {name}" for kind in Kind for name in self.names(kind)]
        return f"{self.name}: {', '.join(has)} (digest {self.digest})"

    @property
    def file(self) -> str:
        """What names it in the folder of an exported student: a file, or a module of a package."""
        file = f"{self.module}.py"
        return file if file in self.sources else self.module

    def __hash__(self) -> int:
        return hash((self.name, self.digest))

    @model_validator(mode="before")
    @classmethod
    def _code_that_was_read(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise PluginError(
                f"is {value!r}, but must be the code itself here, where nothing is run: "
                f"kdcore.contract.plugged.read_plugin reads a file, and an experiment's file names "
                f"it"
            )
        return value

    @model_validator(mode="after")
    def _small_and_in_its_place(self) -> Self:
        for path in map(PurePosixPath, self.sources):
            if path.is_absolute() or ".." in path.parts:
                raise PluginError(f"{self.name} has the file {str(path)!r}, outside of its folder")
        size = sum(map(len, self.sources.values()))
        if size > _MOST_TEXT:
            raise PluginError(
                f"{self.name} has {size:,} characters of Python, but at most {_MOST_TEXT:,} go "
                f"with an experiment; install the package on every machine instead"
            )
        return self

    @model_validator(mode="after")
    def _its_own_digest(self) -> Self:
        if self.sources and digest_of(self.module, self.sources) != self.digest:
            raise PluginError(
                f"the code of {self.name} is not that of its digest {self.digest}; name the file "
                f"again, as {self.name!r}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value}
