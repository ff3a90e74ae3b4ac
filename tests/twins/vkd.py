"""The projection by Cayley's transform in full, and the distance from its definition."""

import torch
from torch import Tensor


def naive_orthonormal_columns(weight: Tensor) -> Tensor:
    """The first k columns of (I - A / 2)^-1 (I + A / 2), A the skew-symmetric matrix of W."""
    rows, columns = weight.shape
    padded = torch.cat([weight, weight.new_zeros(rows, rows - columns)], 1)
    skew = padded - padded.T
    identity = torch.eye(rows, dtype=weight.dtype)
    return (torch.linalg.inv(identity - skew / 2) @ (identity + skew / 2))[:, :columns]


def naive_vkd(projected_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Half the square of differences below 1, else |difference| - 1 / 2, to the standardised t."""
    mean = teacher_embedding.mean(1, keepdim=True)
    variance = ((teacher_embedding - mean) ** 2).mean(1, keepdim=True)
    difference = (projected_embedding - (teacher_embedding - mean) / (variance + 1e-5) ** 0.5).abs()
    return torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
