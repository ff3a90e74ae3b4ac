"""Vectors without their length."""

import torch
from torch import Tensor

# What a network computes is longer than this, or exactly zero.
_NO_LENGTH = 1e-12


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors along the last dimension, scaled to Euclidean length 1.

    A vector of length 1e-12 or less has no direction: it gives zero and takes no gradient. To
    divide it by 1e-12 instead, as is usual, multiplies its gradient by 1e12.

    Args:
        vectors: [..., D].

    Returns:
        [..., D].
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    directed = lengths > _NO_LENGTH
    return vectors * torch.where(directed, torch.where(directed, lengths, 1.0).reciprocal(), 0.0)
