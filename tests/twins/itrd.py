"""The paper's two terms, unit by unit and pair by pair of images."""

import torch
from torch import Tensor


def naive_itrd(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    projected_embedding: Tensor,
    *,
    alpha: float,
    correlation_weight: float,
    mutual_weight: float,
) -> Tensor:
    """Both terms, weighted."""
    correlation = naive_correlation(projected_embedding, teacher_embedding, alpha=alpha)
    mutual = naive_mutual_information(student_embedding, teacher_embedding)
    return correlation_weight * correlation + mutual_weight * mutual


def naive_correlation(
    projected_embedding: Tensor, teacher_embedding: Tensor, *, alpha: float
) -> Tensor:
    """log2 of the sum over units of |C - 1|^(2 alpha)."""
    images, units = projected_embedding.shape
    total = projected_embedding.new_zeros(())
    for unit in range(units):
        ours, theirs = (
            (column - column.mean()) / column.std(correction=1)
            for column in (projected_embedding[:, unit], teacher_embedding[:, unit])
        )
        correlation = (ours * theirs).sum() / images
        total = total + (correlation - 1).abs() ** (2 * alpha)
    return torch.log2(total)


def naive_mutual_information(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Sums of squares of the student's and of the joint Gram matrix, each over its trace."""
    images = range(len(student_embedding))
    student, teacher = (
        [x / x.square().sum().sqrt() for x in rows]
        for rows in (student_embedding, teacher_embedding)
    )
    ours = [[(student[i] * student[j]).sum() for j in images] for i in images]
    both = [[ours[i][j] * (teacher[i] * teacher[j]).sum() for j in images] for i in images]

    def purity(gram: list[list[Tensor]]) -> Tensor:
        trace = torch.stack([gram[i][i] for i in images]).sum()
        return torch.stack([(gram[i][j] / trace) ** 2 for i in images for j in images]).sum()

    return purity(ours) - purity(both)
