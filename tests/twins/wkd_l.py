"""WKD-L image by image: the non-targets cut out, and the whole plan of the transport in memory."""

import torch
from torch import Tensor


def naive_transport_cost(classifier: Tensor, *, sharpness: float) -> Tensor:
    """1 - exp(-kappa (1 - cosine)), pair by pair."""
    lengths = (classifier**2).sum(1) ** 0.5
    cosines = (classifier[:, None] * classifier[None, :]).sum(2) / torch.outer(lengths, lengths)
    return 1 - torch.exp(-sharpness * (1 - cosines))


def naive_sinkhorn(
    p: Tensor, q: Tensor, cost: Tensor, *, regularization: float, iterations: int
) -> Tensor:
    """The plan, after so many scalings of its columns to q and then of its rows to p."""
    plan = (-cost / regularization).exp()
    for _ in range(iterations):
        plan = plan * (q / plan.sum(0))[None, :]
        plan = plan * (p / plan.sum(1))[:, None]
    return plan


def naive_wkd_l(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    *,
    transport_weight: float,
    temperature: float,
    regularization: float,
    iterations: int,
) -> Tensor:
    """-t_y log s_y + lambda * the cost of the plan between the non-targets, mean over images."""
    total = student_logits.new_zeros(())
    for student, teacher, label in zip(
        student_logits, teacher_logits, labels.tolist(), strict=True
    ):
        total = total - teacher.softmax(0)[label] * student.softmax(0)[label].log()
        others = [k for k in range(len(student)) if k != label]
        p, q = ((logits[others] / temperature).softmax(0) for logits in (student, teacher))
        between = cost[others][:, others]
        plan = naive_sinkhorn(p, q, between, regularization=regularization, iterations=iterations)
        total = total + transport_weight * (plan * between).sum()
    return total / len(student_logits)
