"""The softened divergence of Hinton et al., as its definition reads."""

from torch import Tensor


def z_score(logits: Tensor) -> Tensor:
    """(z - mean) / deviation of each row, of Sun et al.; without a guard against constant rows."""
    return (logits - logits.mean(dim=1, keepdim=True)) / logits.std(dim=1, keepdim=True)


def naive_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    standardize: bool = False,
) -> Tensor:
    """T^2 / B * sum over images of sum_k p_k log(p_k / q_k), with softened p and q."""
    if standardize:
        student_logits, teacher_logits = z_score(student_logits), z_score(teacher_logits)
    total = student_logits.new_zeros(())
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        q = (student / temperature).exp() / (student / temperature).exp().sum()
        p = (teacher / temperature).exp() / (teacher / temperature).exp().sum()
        total = total + (p * (p / q).log()).sum()
    return temperature**2 * total / len(student_logits)
