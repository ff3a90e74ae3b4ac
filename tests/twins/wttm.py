"""Weighted transformed teacher matching, with powers of probabilities."""

from torch import Tensor


def naive_wttm(
    student_logits: Tensor, teacher_logits: Tensor, *, power: float, weighted: bool
) -> Tensor:
    """Mean over images of U * KL(p^power / U || q), U = sum_k p_k^power or, unweighted, 1."""
    total = student_logits.new_zeros(())
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        q, p = student.softmax(0), teacher.softmax(0)
        power_sum = (p**power).sum()
        transformed = p**power / power_sum
        divergence = (transformed * (transformed / q).log()).sum()
        total = total + (power_sum * divergence if weighted else divergence)
    return total / len(student_logits)
