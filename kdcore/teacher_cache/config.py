"""How a teacher's outputs are cached: the `cache` of an experiment."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CacheConfig(BaseModel):
    """How a teacher's outputs are kept.

    Args:
        precision: of what is kept: `float32` changes nothing, `float16` halves the size. What the
            cache has no room for is rounded likewise, so that room decides only the speed.
        max_gb: of all cached outputs on a machine, in 10^9 bytes. Where it is full, what saves less
            for its size makes room for what saves more.
        shared: a folder or URI that several machines reach: looked up before a view is computed,
            and filled after.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    precision: Literal["float16", "float32"] = "float16"
    max_gb: float = Field(20.0, ge=0)
    shared: str | None = None
