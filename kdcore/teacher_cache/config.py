"""The configuration of the teacher cache."""

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)


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
        device_share: share of a GPU's memory that a view's outputs may take. Larger ones stay in
            the machine's memory and come by batches, which changes no value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    precision: Literal["float16", "float32"] = "float16"
    max_gb: float = Field(20.0, ge=0)
    shared: str | None = None
    device_share: float = Field(0.5, ge=0, le=1)

    @model_serializer(mode="wrap")
    def _without_the_usual_share(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As what was written before there was one."""
        content: dict[str, Any] = handler(self)
        if self.device_share == type(self).model_fields["device_share"].default:
            content.pop("device_share", None)
        return content
