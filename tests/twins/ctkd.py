"""The softened divergence with a temperature that is a tensor, so that it has a gradient."""

from torch import Tensor


def naive_ctkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor,
    *,
    standardize: bool = False,
) -> Tensor:
    """tau^2 / B * sum over images and classes of p log(p / q), p and q softened by tau."""
    if standardize:
        student_logits, teacher_logits = (
            (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True)
            for logits in (student_logits, teacher_logits)
        )
    total = student_logits.new_zeros(())
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        q, p = (student / temperature).softmax(0), (teacher / temperature).softmax(0)
        for k in range(len(student)):
            total = total + p[k] * (p[k].log() - q[k].log())
    return temperature**2 * total / len(student_logits)
