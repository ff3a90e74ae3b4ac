"""Equations 1 to 4 of the paper, pair by pair of images."""

import torch
from torch import Tensor


def naive_sp(student_map: Tensor, teacher_map: Tensor, *, batch_scaled: bool) -> Tensor:
    """Sum over all pairs of the squared difference of similarities, over B^2."""
    student, teacher = _similarities(student_map), _similarities(teacher_map)
    images = len(student_map)
    total = student_map.new_zeros(())
    for i in range(images):
        for j in range(images):
            total = total + (teacher[i][j] - student[i][j]) ** 2
    mean = total / images**2
    return mean * images / 64 if batch_scaled else mean


def _similarities(activation: Tensor) -> list[list[Tensor]]:
    """Inner products of flattened maps, over the length of each row."""
    maps = [image.flatten() for image in activation]
    similarities = []
    for one in maps:
        row = [torch.dot(one, other) for other in maps]
        length = sum(value**2 for value in row) ** 0.5
        similarities.append([value / length for value in row])
    return similarities
