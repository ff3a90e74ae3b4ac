"""Decoupled knowledge distillation, image by image and with plain probabilities."""

import torch
from torch import Tensor


def _z_score(logits: Tensor) -> Tensor:
    return (logits - logits.mean(dim=1, keepdim=True)) / logits.std(dim=1, keepdim=True)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def naive_dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    target_weight: float,
    nontarget_weight: float,
    temperature: float,
    standardize: bool = False,
) -> Tensor:
    """alpha * KL of (p_y, 1 - p_y) + beta * KL of p_k / (1 - p_y) for k other than y."""
    if standardize:
        student_logits, teacher_logits = _z_score(student_logits), _z_score(teacher_logits)
    total = student_logits.new_zeros(())
    for student, teacher, label in zip(
        student_logits, teacher_logits, labels.tolist(), strict=True
    ):
        parts = []
        for logits in (teacher, student):
            probabilities = (logits / temperature).softmax(0)
            others = torch.cat([probabilities[:label], probabilities[label + 1 :]])
            coin = torch.stack([probabilities[label], others.sum()])
            parts.append((coin, others / others.sum()))
        (teacher_coin, teacher_others), (student_coin, student_others) = parts
        total = total + target_weight * _divergence(teacher_coin, student_coin)
        total = total + nontarget_weight * _divergence(teacher_others, student_others)
    return temperature**2 * total / len(student_logits)
