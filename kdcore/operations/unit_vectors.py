"""Vectors scaled to length 1."""

import torch
from torch import Tensor

# Vectors that a network computes are longer than this, or exactly zero.
_NO_LENGTH = 1e-12


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors along the last dimension, scaled to Euclidean length 1.

    A vector of length 1e-12 or less becomes zero and gets no gradient. The usual division by
    max(length, 1e-12) would multiply its gradient by 1e12.

    Args:
        vectors: [..., D].

    Returns:
        [..., D].
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    directed = lengths > _NO_LENGTH
    return vectors * torch.where(directed, torch.where(directed, lengths, 1.0).reciprocal(), 0.0)
