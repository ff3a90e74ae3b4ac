"""Refined logits, image by image and with plain probabilities."""

import torch
from torch import Tensor


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def naive_rld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    confidence_weight: float,
    correlation_weight: float,
    confidence_temperature: float,
    temperature: float,
    standardize: bool = False,
) -> Tensor:
    """alpha * KL of (p_max, 1 - p_max) from (q_y, 1 - q_y) + beta * KL over classes below t_y."""
    total = student_logits.new_zeros(())
    for student, teacher, label in zip(
        student_logits, teacher_logits, labels.tolist(), strict=True
    ):
        if standardize:
            student, teacher = ((z - z.mean()) / z.std() for z in (student, teacher))  # noqa: PLW2901
        sure = (teacher / confidence_temperature).softmax(0).max()
        right = (student / confidence_temperature).softmax(0)[label]
        confidence = _divergence(torch.stack([sure, 1 - sure]), torch.stack([right, 1 - right]))
        total = total + confidence_weight * confidence_temperature**2 * confidence
        below = [k for k in range(len(teacher)) if teacher[k] < teacher[label]]
        if below:
            p, q = ((logits[below] / temperature).softmax(0) for logits in (teacher, student))
            total = total + correlation_weight * temperature**2 * _divergence(p, q)
    return total / len(student_logits)
