"""CRD as its paper and the field's code write it: gathered banks, probabilities, plain sums."""

import torch
from torch import Tensor


def _critic_terms(
    anchor: Tensor, bank: Tensor, positions: Tensor, log_z: Tensor, temperature: float
) -> Tensor:
    """-log h(positive) - sum of log(1 - h(negative)), mean over the batch; h of equation 19.

    Every anchor gets its own copy of the rows drawn for it: B x (1 + K) x D numbers.
    """
    images, drawn = positions.shape
    rows = bank.index_select(0, positions.reshape(-1)).view(images, drawn, bank.shape[1])
    cosines = torch.bmm(rows, anchor.unsqueeze(2)).squeeze(2)
    x = torch.exp(cosines / temperature) / torch.exp(log_z)
    share = (drawn - 1) / len(bank)
    of_positives = torch.log(x[:, 0] / (x[:, 0] + share))
    of_negatives = torch.log(share / (x[:, 1:] + share))
    return -(of_positives.sum() + of_negatives.sum()) / images


def naive_crd(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    positions: Tensor,
    log_normalizers: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Equations 17 to 19, for student anchors against the teacher's bank and the reverse."""
    log_zs, log_zt = log_normalizers.unbind()
    student_term = _critic_terms(student_embedding, teacher_bank, positions, log_zs, temperature)
    teacher_term = _critic_terms(teacher_embedding, student_bank, positions, log_zt, temperature)
    return student_term + teacher_term


def naive_log_normalizer(
    anchor: Tensor, bank: Tensor, positions: Tensor, *, temperature: float
) -> Tensor:
    """log of Z = N * mean over anchors and drawn rows of exp(cosine / temperature)."""
    values = [
        torch.exp(torch.dot(anchor[i], bank[j]) / temperature)
        for i, row in enumerate(positions.tolist())
        for j in row
    ]
    return torch.log(len(bank) * torch.stack(values).mean())


def naive_info_nce(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    student_others: Tensor,
    teacher_others: Tensor,
    labels: Tensor,
    other_labels: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """-log of exp(positive) / (exp(positive) + sum of exp(negatives)), image by image."""
    total = torch.zeros_like(student_embedding[0, 0])
    for anchors, partners, others in (
        (student_embedding, teacher_embedding, teacher_others),
        (teacher_embedding, student_embedding, student_others),
    ):
        for i, anchor in enumerate(anchors):
            positive = torch.exp(torch.dot(anchor, partners[i]) / temperature)
            candidates = positive
            for k, other in enumerate(others):
                if labels[i] != other_labels[k]:
                    candidates = candidates + torch.exp(torch.dot(anchor, other) / temperature)
            total = total - torch.log(positive / candidates)
    return total / len(labels)
