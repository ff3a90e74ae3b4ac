"""Mixed images: mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899).

An image's partner, its share and its box are drawn from (seed, image, view), so that teacher and
student see the same pixels in every batch. The partner is an image of the training split.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from kdcore.contract.taps import Mixed
from kdcore.data.augmentation.draws import Draws
from kdcore.data.augmentation.geometry import inside
from kdcore.data.augmentation.steps import Cutmix, Mixup, Step
from kdcore.data.views import RESOLUTION

_WHOLE = 1 << 15
"""A share of 1; shares are whole numbers of such parts, so that pixels are mixed exactly."""

_QUANTILES = 4096
_INTERVALS = 1 << 14

# The numbers of draws.
_PARTNER, _SHARE, _ROW, _COLUMN, _WHICH = range(5)


@cache
def beta_quantiles(alpha: float) -> tuple[int, ...]:
    """4,096 equally probable values of Beta(alpha, alpha), in parts of 2^-15.

    A table in place of a generator: the same on every machine, and one draw gives one value.
    """
    # By t = x^e, which takes the density's pole at 0 away; by symmetry up to 1/2 only.
    e = min(alpha, 1.0)
    step = 0.5**e / _INTERVALS

    def density(t: float) -> float:
        x = t ** (1 / e)
        return float(x ** (alpha - e) * (1 - x) ** (alpha - 1))

    centres = (density((number + 0.5) * step) for number in range(_INTERVALS))
    below = [0.0, *accumulate(centres)]
    half = []
    for number in range(_QUANTILES // 2):
        wanted = (number + 0.5) / (_QUANTILES / 2) * below[-1]
        after = bisect_left(below, wanted)
        share = (wanted - below[after - 1]) / (below[after] - below[after - 1])
        half.append(round(((after - 1 + share) * step) ** (1 / e) * _WHOLE))
    return (*half, *(_WHOLE - value for value in reversed(half)))


@dataclass(frozen=True)
class Mixing:
    """How n images are mixed with their partners.

    Args:
        partners: [n], int64, positions in the training split.
        parts: [n], int64, what mixup takes of the image itself, in parts of 2^-15.
        boxes: [n, 4], int64, where CutMix shows the partner: top, left, bottom and right.
        shares: [n], float32, of the image itself.
    """

    partners: Tensor
    parts: Tensor
    boxes: Tensor
    shares: Tensor

    def to(self, device: torch.device) -> "Mixing":
        """The same on another device."""
        return Mixing(*(tensor.to(device) for tensor in vars(self).values()))

    def split(self, size: int) -> Iterator["Mixing"]:
        """That of so many images after the other."""
        return map(Mixing, *(torch.split(tensor, size) for tensor in vars(self).values()))

    def pixels(self, images: Tensor, partners: Tensor) -> Tensor:
        """Mixes images [n, C, H, W], uint8, with those of their partners."""
        height, width = images.shape[2:]
        mixed = torch.where(inside(self.boxes, height, width), partners, images)
        rows = (self.parts < _WHOLE).nonzero().flatten()
        if len(rows):
            own = (self.parts[rows].float() / _WHOLE).view(-1, 1, 1, 1)
            whole, other = (each.index_select(0, rows) for each in (images, partners))
            # Parts of 2^-15 of bytes have 23 bits, and are exact in float32.
            total = (whole * own).add_(other * (1 - own))
            mixed[rows] = total.add_(0.5).to(torch.uint8)
        return mixed

    def classes(self, own: Tensor, partners: Tensor) -> tuple[Tensor, Mixed]:
        """The dominant classes [n], and the others with the share of the dominant one."""
        dominant = self.shares >= 0.5
        return torch.where(dominant, own, partners), Mixed(
            torch.where(dominant, partners, own),
            torch.where(dominant, self.shares, 1 - self.shares),
        )


def mixing_of(
    steps: tuple[Step, ...],
    image_ids: Tensor,
    *,
    seed: int,
    view: int,
    sides: tuple[int, int],
    partners_of: Callable[[Tensor], Tensor],
) -> Mixing | None:
    """How images are mixed in a view; None if no step mixes.

    Where mixup and CutMix are both listed, each image draws one of them, evenly, as in
    torchvision's recipes.

    Args:
        steps: all of them.
        image_ids: [n], int64, positions in the data set.
        seed: of the data set's views.
        view: >= 0.
        sides: height and width of the images.
        partners_of: turns random numbers [n], int64, below 2^31, into positions of partners.
    """
    places = [place for place, step in enumerate(steps) if step.mixes]
    if not places:
        return None
    ids = image_ids.cpu()
    draws = Draws(seed, view, ids, places[0])
    chosen = torch.tensor(places)[draws.below(_WHICH, len(places))]
    parts = torch.full((len(ids),), _WHOLE)
    boxes = torch.zeros(len(ids), 4, dtype=torch.int64)
    for place in places:
        rows = (chosen == place).nonzero().flatten()
        step, own = steps[place], Draws(seed, view, ids[rows], place)
        if isinstance(step, Mixup):
            parts[rows] = _drawn_parts(own, step.alpha)
        if isinstance(step, Cutmix):
            boxes[rows] = _boxes(own, step.alpha, sides)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    of_boxes = 1 - area.double() / (sides[0] * sides[1])
    shares = (parts.double() / _WHOLE * of_boxes).float()
    return Mixing(partners_of(draws.below(_PARTNER, RESOLUTION)), parts, boxes, shares)


def _drawn_parts(draws: Draws, alpha: float) -> Tensor:
    return torch.tensor(beta_quantiles(alpha))[draws.below(_SHARE, _QUANTILES)]


def _boxes(draws: Draws, alpha: float, sides: tuple[int, int]) -> Tensor:
    """[n, 4]: a box about a random centre, with the partner's share of the area before it is cut
    at the image's borders."""
    height, width = sides
    # A single correctly rounded operation each: the same everywhere.
    radius = (1 - _drawn_parts(draws, alpha).double() / _WHOLE).sqrt() * 0.5
    tall, wide = (radius * height).long(), (radius * width).long()
    row, column = draws.below(_ROW, height), draws.below(_COLUMN, width)
    top, bottom = (row - tall).clamp(min=0), (row + tall).clamp(max=height)
    left, right = (column - wide).clamp(min=0), (column + wide).clamp(max=width)
    return torch.stack([top, left, bottom, right], 1)
