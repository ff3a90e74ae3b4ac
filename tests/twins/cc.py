"""The paper's kernels between unit vectors, pair by pair of images."""

import math

from torch import Tensor


def naive_cc(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    kernel: str,
    gamma: float,
    order: int,
) -> Tensor:
    """Sum over all pairs of the squared difference of kernel values, over B^2."""
    images = len(student_embedding)
    student, teacher = (
        [x / x.square().sum().sqrt() for x in rows]
        for rows in (student_embedding, teacher_embedding)
    )
    total = student_embedding.new_zeros(())
    for i in range(images):
        for j in range(images):
            ours = _kernel(student[i], student[j], kernel, gamma, order)
            theirs = _kernel(teacher[i], teacher[j], kernel, gamma, order)
            total = total + (ours - theirs) ** 2
    return total / images**2


def _kernel(x: Tensor, y: Tensor, kernel: str, gamma: float, order: int) -> Tensor:
    if kernel == "bilinear":
        return (x * y).sum()
    if kernel == "rbf":
        return (-gamma * (x - y).square().sum()).exp()
    terms = [
        math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * (x * y).sum() ** p
        for p in range(order + 1)
    ]
    return sum(terms[1:], start=terms[0])
