"""Where in a map a network is active."""

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
    # An even power needs no absolute value. Products, because the gradient of a power takes twice
    # their time.
    odd = power % 2 == 1
    factor = activation.abs() if odd else activation * activation
    magnitudes = factor
    for _ in range(power - 1 if odd else power // 2 - 1):
        magnitudes = magnitudes * factor
    strengths = magnitudes.sum(1).flatten(1)
    # 1,000^8 is within float32's range and its square is not: the length is taken of strengths up
    # to 1. Attention is the same for every scale, so this one needs no gradient.
    largest = strengths.detach().amax(1, keepdim=True)
    return unit_vectors(strengths / torch.where(largest > 0, largest, 1.0))
