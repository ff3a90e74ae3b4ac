"""How evaluation crops images of any size, without importing PyTorch."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# Evaluation crops 224 pixels out of 256, as is usual since Krizhevsky et al., NeurIPS 2012.
_USUAL = (224, 256)

# Of a pixel: 224 / (224 / 232) may be a little below 232.
_ROUNDING = 1e-6


class CentreCrop(BaseModel):
    """How evaluation crops an image: it is resized, antialiased, until its sides just cover those
    of the crop over their share, and the centre is taken.

    Args:
        crop_share: side of the crop over that of the resized image, as timm's `crop_pct`.
        interpolation: of resizing, `bilinear` or `bicubic`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_share: float = Field(_USUAL[0] / _USUAL[1], gt=0, le=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def covered(self, side: int) -> int:
        """The length in pixels that a side of the image must have for this side of the crop. It is
        the next below, as timm's; for the default share the nearest, as in earlier versions."""
        if self.crop_share == _USUAL[0] / _USUAL[1]:
            return round(side * _USUAL[1] / _USUAL[0])
        return math.floor(side / self.crop_share + _ROUNDING)

    def in_words(self, size: tuple[int, int]) -> str:
        """What becomes of an image for a crop of this height and width."""
        height, width = map(self.covered, size)
        return (
            f"resized to cover {height}x{width} ({self.interpolation}, antialiased), then the "
            f"centre {size[0]}x{size[1]}"
        )

    def __str__(self) -> str:
        return f"{{crop_share: {self.crop_share:g}, interpolation: {self.interpolation}}}"


USUAL_CROP = CentreCrop()
"""The default. It is written nowhere: what was made before it could be chosen still fits."""
