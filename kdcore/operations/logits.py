"""Operations on logits: checks, standardisation, targets and non-targets, softened KL."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid

from kdcore.contract.network_pair import NetworkPair
from kdcore.errors import NetworkError

# Keeps the gradient finite for constant logits; ordinary ones have standard deviations of 1 to 10.
_FLAT = 1e-4

# Replaces log 0, so that a class that both networks rule out (a logit of -inf) adds
# 0 * (log 0 - log 0) = 0 to a divergence instead of NaN.
_LOG_ZERO = -1e30


def check_classes(networks: NetworkPair, *, at_least: int = 2) -> None:
    """Refuses networks whose logits cannot be compared class by class.

    Args:
        networks: student and teacher.
        at_least: the number of classes that the method needs.

    Raises:
        NetworkError: the two networks have different numbers of classes, or too few.
    """
    student, teacher = networks.student.num_classes, networks.teacher.num_classes
    if student != teacher:
        raise NetworkError(
            f"num_classes is {student} for the student {networks.student.network} and {teacher} "
            f"for the teacher {networks.teacher.network}, but must be equal; use a teacher of the "
            f"same classes, or a method that does not compare logits"
        )
    if student < at_least:
        raise NetworkError(
            f"num_classes is {student}, but must be >= {at_least}: with fewer, the compared "
            f"probabilities are always equal; use another method"
        )


def standardized(logits: Tensor) -> Tensor:
    """Each row shifted to mean 0 and scaled to standard deviation 1 over the classes.

    Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv:2403.01427.

    Args:
        logits: [B, K], K >= 2. Of two classes only their order remains.

    Returns:
        [B, K]; zero for constant rows, with a finite gradient.
    """
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / (logits.shape[1] - 1)
    return centred / (variance + _FLAT**2).sqrt()


def target_and_others(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Splits each image's logits, without a boolean mask, whose result has no static shape.

    Args:
        logits: [B, K], K >= 2.
        labels: [B], int64 classes.

    Returns:
        The logit of the image's class, [B]; and those of the other classes, in their order,
        [B, K - 1].
    """
    target = labels[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = others + (others >= target)  # skips the target
    return logits.gather(1, target).squeeze(1), logits.gather(1, others)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 - p)), [B], of the probability p of one class for each image.

    Its difference of logits is finite where the logarithm of the other classes' probability, 1 - p,
    would be -inf.

    Args:
        logits: [B, K], K >= 2.
        labels: [B], int64 classes.
    """
    target, others = target_and_others(logits, labels)
    return target - others.logsumexp(1)


def binary_divergence(student_odds: Tensor, teacher_odds: Tensor) -> Tensor:
    """KL(teacher || student), [B], nats, between two outcomes with probabilities sigmoid(odds).

    Args:
        student_odds: [B], logarithms.
        teacher_odds: [B], logarithms.
    """
    log_p, log_q = logsigmoid(teacher_odds), logsigmoid(-teacher_odds)
    return log_p.exp() * (log_p - logsigmoid(student_odds)) + log_q.exp() * (
        log_q - logsigmoid(-student_odds)
    )


def softened_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor
) -> Tensor:
    """KL(teacher || student) of each image's softened probabilities, times temperature squared.

    Args:
        student_logits: [B, K]. -inf rules out a class that the teacher rules out too.
        teacher_logits: [B, K].
        temperature: > 0; its square keeps the scale of gradients.

    Returns:
        [B], nats. Zero for rows that differ only by a constant.
    """
    student = log_softmax(student_logits / temperature, dim=1).clamp(min=_LOG_ZERO)
    teacher = log_softmax(teacher_logits / temperature, dim=1).clamp(min=_LOG_ZERO)
    divergences = kl_div(student, teacher, reduction="none", log_target=True)
    return divergences.sum(1) * temperature**2
