"""Operations on some images of a batch, and the batch put together again."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def by_groups(
    images: Tensor, groups: Iterable[tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]]
) -> Tensor:
    """Changes each group of images by an operation of its own.

    Args:
        images: [B, C, H, W].
        groups: positions [n], int64, on the processor, which occur once in all groups, and what
            makes new images of those there and of their positions. Images in no group stay.

    Returns:
        [B, C, H, W], a new tensor.
    """
    rest = torch.ones(len(images), dtype=torch.bool)
    parts, rows_of_parts = [], []
    for rows, change in groups:
        if len(rows):
            rest[rows] = False
            parts.append(change(images.index_select(0, rows.to(images.device)), rows))
            rows_of_parts.append(rows)
    others = rest.nonzero().flatten()
    parts.append(images.index_select(0, others.to(images.device)))
    order = torch.cat([*rows_of_parts, others])
    # Both copy whole images, which is several times as fast as index_copy_ and assignments are.
    return torch.cat(parts).index_select(0, order.argsort().to(images.device))
