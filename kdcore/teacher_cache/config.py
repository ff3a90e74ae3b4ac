"""The configuration of the teacher cache."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CacheConfig(BaseModel):
    """How to cache a teacher's outputs.

    Args:
        precision: of the stored outputs: `float32` is exact, `float16` takes half the space.
            Outputs that do not fit are rounded in the same way, so that space affects only the
            speed.
        max_gb: of all cached outputs on a machine, in 10^9 bytes. When it is full, outputs that
            save less time for their size are evicted.
        shared: folder or URI that several machines can reach: read before a view is computed, and
            written after. While it is away, each machine computes for itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    precision: Literal["float16", "float32"] = "float16"
    max_gb: float = Field(20.0, ge=0)
    shared: str | None = None
