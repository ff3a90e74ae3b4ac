"""Weighted soft labels, image by image."""

from torch import Tensor


def naive_wsld(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float
) -> Tensor:
    """T^2 / B * sum over images of (1 - exp(-L_s / L_t)) * KL, L the cross-entropy at T = 1.

    The divergence is cross-entropy of soft labels less their entropy.
    """
    total = student_logits.new_zeros(())
    for student, teacher, label in zip(
        student_logits, teacher_logits, labels.tolist(), strict=True
    ):
        student_ce = -student.detach().softmax(0)[label].log()
        teacher_ce = -teacher.detach().softmax(0)[label].log()
        weight = 1 - (-student_ce / teacher_ce).exp()
        q, p = (student / temperature).softmax(0), (teacher / temperature).softmax(0)
        cross_entropy, entropy = -(p * q.log()).sum(), -(p * p.log()).sum()
        total = total + weight * (cross_entropy - entropy)
    return temperature**2 * total / len(student_logits)
