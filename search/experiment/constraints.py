"""The keys below `constraints`: what a student may cost."""

from typing import get_args

from pydantic import Field, model_serializer

from kdcore.networks.cost import CostName
from search.experiment.closed import Closed


class Constraints(Closed):
    """The most that a student may cost; others are left out before anything is trained. Null: no
    limit.

    Args:
        parameters: number of them.
        multiply_adds: of convolutions and matrix products for one image.
        latency_ms: milliseconds for one image, measured once, where the search is launched.
        batch_latency_ms: milliseconds for a batch of 64 images, likewise.
    """

    parameters: float | None = Field(None, gt=0)
    multiply_adds: float | None = Field(None, gt=0)
    latency_ms: float | None = Field(None, gt=0)
    batch_latency_ms: float | None = Field(None, gt=0)

    @property
    def limits(self) -> dict[CostName, float]:
        """Those that are set."""
        named = {name: getattr(self, name) for name in get_args(CostName)}
        return {name: limit for name, limit in named.items() if limit is not None}

    @model_serializer
    def _without_what_is_not_set(self) -> dict[CostName, float]:
        return self.limits
