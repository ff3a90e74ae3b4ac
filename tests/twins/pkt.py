"""The paper's conditional probabilities with the cosine affinity, pair by pair of images."""

from torch import Tensor


def naive_pkt(student_embedding: Tensor, teacher_embedding: Tensor, *, reduction: str) -> Tensor:
    """sum_ij p_j|i log(p_j|i / q_j|i), over B^2 or over B."""
    student, teacher = _probabilities(student_embedding), _probabilities(teacher_embedding)
    images = len(student_embedding)
    total = student_embedding.new_zeros(())
    for i in range(images):
        for j in range(images):
            total = total + teacher[i][j] * (teacher[i][j] / student[i][j]).log()
    return total / images if reduction == "rows" else total / images**2


def _probabilities(embedding: Tensor) -> list[list[Tensor]]:
    """[i][j]: (cos(x_i, x_j) + 1) / 2 over its sum over j, the image itself included."""
    rows = []
    for one in embedding:
        affinities = [
            ((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt() + 1) / 2
            for other in embedding
        ]
        rows.append([affinity / sum(affinities) for affinity in affinities])
    return rows
