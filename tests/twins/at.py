"""Equation 2 of the paper, and its losses on gradients by the pixels, as they read."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def naive_attention(activation: Tensor, power: int) -> Tensor:
    """Q / |Q|, with Q the sum over channels of |F|^power, as a vector for each image."""
    sums = (activation.abs() ** power).sum(dim=1).flatten(1)
    return sums / (sums**2).sum(dim=1, keepdim=True).sqrt()


def naive_at(
    student_map: Tensor, teacher_map: Tensor, *, power: int, reduction: str = "mean"
) -> Tensor:
    if student_map.shape[2:] != teacher_map.shape[2:]:
        height = min(student_map.shape[2], teacher_map.shape[2])
        width = min(student_map.shape[3], teacher_map.shape[3])
        student_map = adaptive_avg_pool2d(student_map, (height, width))
        teacher_map = adaptive_avg_pool2d(teacher_map, (height, width))
    difference = naive_attention(student_map, power) - naive_attention(teacher_map, power)
    return _distance(difference, reduction)


def naive_gradient_at(
    student_gradient: Tensor, teacher_gradient: Tensor, *, reduction: str
) -> Tensor:
    return _distance(student_gradient - teacher_gradient, reduction)


def naive_flip_symmetry(gradient: Tensor, flipped_gradient: Tensor, *, reduction: str) -> Tensor:
    width = gradient.shape[3]
    columns = [flipped_gradient[:, :, :, width - 1 - j] for j in range(width)]
    return _distance(gradient - torch.stack(columns, dim=3), reduction)


def _distance(difference: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return (difference**2).mean()
    lengths = [(image**2).sum().sqrt() for image in difference]
    return torch.stack(lengths).mean() / 2
