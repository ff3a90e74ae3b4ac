"""A trainable projection with orthonormal rows or columns."""

import torch
from torch import Tensor, nn


def orthonormal_columns(weight: Tensor) -> Tensor:
    """Cayley's transform of a free matrix: columns of length 1 at right angles to each other.

    With the skew-symmetric A = W E' - E W', where E are the first k columns of the identity, these
    are the first k columns of (I - A / 2)^-1 (I + A / 2), from a system of 2 k equations instead of
    n (Wen and Yin, A feasible method for optimization with orthogonality constraints, 2013).

    Args:
        weight: [n, k], n >= k; any values.

    Returns:
        [n, k]; the first columns of the identity for zeros.
    """
    rows, columns = weight.shape
    identity = torch.eye(columns, dtype=weight.dtype, device=weight.device)
    first = torch.cat([identity, weight.new_zeros(rows - columns, columns)])
    left, right = torch.cat([weight, -first], 1), torch.cat([first, weight], 1)
    system = torch.eye(2 * columns, dtype=weight.dtype, device=weight.device)
    system = system - 0.5 * right.T @ left
    # It always has a solution: to check it would wait for the device.
    solution, _ = torch.linalg.solve_ex(system, right.T @ first)
    turned: Tensor = first + left @ solution
    return turned


class OrthogonalProjector(nn.Module):
    """A linear map without bias, whose matrix keeps orthonormal rows, or columns if it widens.

    Args:
        inputs: features that it reads.
        outputs: features that it gives.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.widens = outputs > inputs
        fewer, more = sorted((inputs, outputs))
        # The skew-symmetric matrix then has eigenvalues of the order of 1: far from none, and from
        # so many that the transform hardly turns any further.
        self.weight = nn.Parameter(torch.randn(more, fewer) * fewer**-0.5)

    def matrix(self) -> Tensor:
        """[outputs, inputs]."""
        columns = orthonormal_columns(self.weight)
        return columns if self.widens else columns.T

    def forward(self, features: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        with torch.autocast(features.device.type, enabled=False):
            return features.to(self.weight.dtype) @ self.matrix().T
