"""Equations 1 to 3 of the paper, and the form that the field's other codes give to factors."""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def naive_reconstruction(reconstructed_map: Tensor, teacher_map: Tensor) -> Tensor:
    """|x - P(x)|^2 / |x|^2, over the whole batch."""
    return ((reconstructed_map - teacher_map) ** 2).sum() / (teacher_map**2).sum()


def naive_ft(student_factor: Tensor, teacher_factor: Tensor, *, form: str) -> Tensor:
    student, teacher = student_factor, teacher_factor
    if student.shape[2:] != teacher.shape[2:]:
        height = min(student.shape[2], teacher.shape[2])
        width = min(student.shape[3], teacher.shape[3])
        student = adaptive_avg_pool2d(student, (height, width))
        teacher = adaptive_avg_pool2d(teacher, (height, width))
    if form == "attention":
        student, teacher = (student**2).mean(1, keepdim=True), (teacher**2).mean(1, keepdim=True)
    return (_of_length_1(student.flatten(1)) - _of_length_1(teacher.flatten(1))).abs().mean()


def _of_length_1(rows: Tensor) -> Tensor:
    return rows / (rows**2).sum(dim=1, keepdim=True).sqrt()
