"""Feature maps of two networks at a common size."""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def match_spatial(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pools whichever map is larger, in each direction, to the smaller side.

    Args:
        student: [B, Cs, Hs, Ws].
        teacher: [B, Ct, Ht, Wt].

    Returns:
        Both maps with height min(Hs, Ht) and width min(Ws, Wt).
    """
    size = (
        min(student.shape[2], teacher.shape[2]),
        min(student.shape[3], teacher.shape[3]),
    )
    if tuple(student.shape[2:]) != size:
        student = adaptive_avg_pool2d(student, size)
    if tuple(teacher.shape[2:]) != size:
        teacher = adaptive_avg_pool2d(teacher, size)
    return student, teacher
