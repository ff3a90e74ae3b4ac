"""Pearson's correlations of DIST, row by row and column by column."""

from torch import Tensor


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Covariance over the product of deviations, of two vectors."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def naive_dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    interclass_weight: float,
    intraclass_weight: float,
    temperature: float,
) -> Tensor:
    """tau^2 * (beta * mean over images of 1 - rho + gamma * mean over classes of 1 - rho)."""
    student = (student_logits / temperature).softmax(1)
    teacher = (teacher_logits / temperature).softmax(1)
    images, classes = student.shape
    inter, intra = student.new_zeros(()), student.new_zeros(())
    for b in range(images):
        inter = inter + (1 - _pearson(student[b], teacher[b])) / images
    for k in range(classes):
        intra = intra + (1 - _pearson(student[:, k], teacher[:, k])) / classes
    return temperature**2 * (interclass_weight * inter + intraclass_weight * intra)
