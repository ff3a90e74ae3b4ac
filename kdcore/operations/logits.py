"""Logits of two networks: made ready for a comparison, taken apart, compared."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from kdcore.contract.network_pair import NetworkPair
from kdcore.errors import NetworkError

# Keeps the gradient finite for constant logits; ordinary logits have deviations of 1 to 10.
_FLAT = 1e-4

# Stands in for the logarithm of 0, so that a class that both networks rule out (a logit of
# minus infinity) adds 0 * (log 0 - log 0) = 0 to a divergence, and not NaN.
_LOG_ZERO = -1e30


def check_classes(setting: NetworkPair, *, at_least: int = 2) -> None:
    """Refuses networks whose logits cannot be compared class by class.

    Args:
        setting: where a method is to work.
        at_least: the fewest classes that leave it something to compare.

    Raises:
        NetworkError: the two networks have different numbers of classes, or too few.
    """
    student, teacher = setting.student.num_classes, setting.teacher.num_classes
    if student != teacher:
        raise NetworkError(
            f"num_classes is {student} for the student {setting.student.network} and {teacher} "
            f"for the teacher {setting.teacher.network}, but must be equal; take a teacher of the "
            f"same classes, or a method that compares no logits"
        )
    if student < at_least:
        raise NetworkError(
            f"num_classes is {student}, but must be >= {at_least}: with fewer, the probabilities "
            f"that are to be compared are always equal; take another method"
        )


def standardized(logits: Tensor) -> Tensor:
    """Each row shifted to mean 0 and scaled to standard deviation 1 over the classes.

    Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv:2403.01427.

    Args:
        logits: [B, K], K >= 2. Of two classes only their order remains.

    Returns:
        [B, K]; zeros for constant rows, with a finite gradient.
    """
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / (logits.shape[1] - 1)
    return centred / (variance + _FLAT**2).sqrt()


def target_and_others(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Takes each image's logits apart, without a mask whose result has an unknown shape.

    Args:
        logits: [B, K], K >= 2.
        labels: [B], int64 classes.

    Returns:
        The logit of the image's class, [B]; and those of the other classes, in their order,
        [B, K - 1].
    """
    target = labels[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = others + (others >= target)  # steps over the target
    return logits.gather(1, target).squeeze(1), logits.gather(1, others)


def softened_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor
) -> Tensor:
    """KL(teacher || student) of each image's softened probabilities, times temperature squared.

    Args:
        student_logits: [B, K]. Minus infinity rules a class out, if the teacher's is so too.
        teacher_logits: [B, K].
        temperature: > 0; its square keeps gradients on the scale of cross-entropy.

    Returns:
        [B], nats. Zero for rows that are equal up to a shift.
    """
    student = log_softmax(student_logits / temperature, dim=1).clamp(min=_LOG_ZERO)
    teacher = log_softmax(teacher_logits / temperature, dim=1).clamp(min=_LOG_ZERO)
    divergences = kl_div(student, teacher, reduction="none", log_target=True)
    return divergences.sum(1) * temperature**2
