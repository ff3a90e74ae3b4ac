"""Normalised knowledge distillation, class by class."""

from torch import Tensor


def naive_nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    nontarget_weight: float,
    temperature: float,
) -> Tensor:
    """-t_y log s_y - gamma T^2 sum over k other than y of N(t)_k log N(s)_k."""
    total = student_logits.new_zeros(())
    for student, teacher, label in zip(
        student_logits, teacher_logits, labels.tolist(), strict=True
    ):
        s, t = student.exp() / student.exp().sum(), teacher.exp() / teacher.exp().sum()
        total = total - t[label] * s[label].log()
        soft_s, soft_t = (student / temperature).softmax(0), (teacher / temperature).softmax(0)
        for k in range(len(student)):
            if k != label:
                normal_s = soft_s[k] / (soft_s.sum() - soft_s[label])
                normal_t = soft_t[k] / (soft_t.sum() - soft_t[label])
                total = total - nontarget_weight * temperature**2 * normal_t * normal_s.log()
    return total / len(student_logits)
