"""Equations 4 to 9 of the paper, with the tensor [B, B, D] of all differences of embeddings."""

import torch
from torch import Tensor


def naive_rkd(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    distance_weight: float,
    angle_weight: float,
) -> Tensor:
    """Means over all pairs and all triplets, those of equal images included."""
    distance = _huber(_distances(student_embedding) - _distances(teacher_embedding)).mean()
    angle = _huber(_cosines(student_embedding) - _cosines(teacher_embedding)).mean()
    return distance_weight * distance + angle_weight * angle


def _huber(difference: Tensor) -> Tensor:
    """Equation 5."""
    size = difference.abs()
    return torch.where(size < 1, 0.5 * difference**2, size - 0.5)


def _distances(embedding: Tensor) -> Tensor:
    """Equation 6: Euclidean, over the mean of those that are not zero."""
    distances = (embedding[:, None] - embedding[None, :]).norm(dim=2)
    return distances / distances[distances > 0].mean()


def _cosines(embedding: Tensor) -> Tensor:
    """Equation 8: [j, i, k] is the cosine at j between the directions to i and to k."""
    differences = embedding[None, :] - embedding[:, None]
    directions = torch.nn.functional.normalize(differences, dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))
