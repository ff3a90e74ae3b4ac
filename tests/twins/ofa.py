"""OFA's cross-entropy, image by image and class by class."""

from torch import Tensor


def naive_ofa(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    enhancement: float,
    temperature: float,
) -> Tensor:
    """-((1 + p_y)^gamma - 1) log q_y minus the sum over k other than y of p_k^gamma log q_k."""
    total = student_logits.new_zeros(())
    for student, teacher, label in zip(
        student_logits, teacher_logits, labels.tolist(), strict=True
    ):
        q = (student / temperature).exp() / (student / temperature).exp().sum()
        p = (teacher / temperature).exp() / (teacher / temperature).exp().sum()
        for k in range(len(p)):
            weight = (1 + p[k]) ** enhancement - 1 if k == label else p[k] ** enhancement
            total = total - weight * q[k].log()
    return total / len(student_logits)
