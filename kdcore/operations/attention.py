"""Spatial attention maps."""

import torch
from torch import Tensor

from kdcore.operations.unit_vectors import unit_vectors


def attention(activation: Tensor, *, power: int) -> Tensor:
    """Spatial attention: the sum over channels of |F|^power, scaled to Euclidean length 1.

    Args:
        activation: [B, C, H, W].
        power: >= 1.

    Returns:
        [B, H * W]; a zero map has zero attention.
    """
    # Even powers need no absolute value. Products: the gradient of `pow` takes twice the time.
    odd = power % 2 == 1
    factor = activation.abs() if odd else activation * activation
    magnitudes = factor
    for _ in range(power - 1 if odd else power // 2 - 1):
        magnitudes = magnitudes * factor
    strengths = magnitudes.sum(1).flatten(1)
    # 1,000^8 is within float32's range but its square is not, so strengths are first scaled to at
    # most 1. Attention does not depend on the scale, which therefore needs no gradient.
    largest = strengths.detach().amax(1, keepdim=True)
    return unit_vectors(strengths / torch.where(largest > 0, largest, 1.0))
