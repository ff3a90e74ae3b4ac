"""Distillation of DeiT, image by image and class by class."""

import math

from torch import Tensor


def naive_deit(
    student_logits: Tensor, teacher_logits: Tensor, *, kind: str, temperature: float
) -> Tensor:
    """-log of the student's probability of the class that the teacher decides on; or T^2 KL."""

    def probabilities(logits: Tensor, softened: float) -> list[Tensor]:
        powers = [(logit / softened).exp() for logit in logits]
        return [power / sum(powers) for power in powers]

    total = student_logits.new_zeros(())
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        if kind == "hard":
            decided = teacher.tolist().index(max(teacher.tolist()))
            total = total - probabilities(student, 1.0)[decided].log()
            continue
        pairs = zip(
            probabilities(teacher, temperature), probabilities(student, temperature), strict=True
        )
        total = total + temperature**2 * sum(p * math.log(p) - p * q.log() for p, q in pairs)
    return total / len(student_logits)
