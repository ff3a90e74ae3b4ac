"""Equations 4 to 8 of the paper, with the tensor [B, Cs, Ct, H * W] of all pairs of channels."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize


def naive_nst(student_map: Tensor, teacher_map: Tensor, *, kernel: str) -> Tensor:
    """Squared maximum mean discrepancy of two images' channels, mean over the batch."""
    height = min(student_map.shape[2], teacher_map.shape[2])
    width = min(student_map.shape[3], teacher_map.shape[3])
    student = normalize(adaptive_avg_pool2d(student_map, (height, width)).flatten(2), dim=2)
    teacher = normalize(adaptive_avg_pool2d(teacher_map, (height, width)).flatten(2), dim=2)
    scale = _mean_square_distance(student, teacher) if kernel == "gaussian" else None
    return (
        _kernel(teacher, teacher, kernel, scale).mean((1, 2))
        + _kernel(student, student, kernel, scale).mean((1, 2))
        - 2 * _kernel(student, teacher, kernel, scale).mean((1, 2))
    ).mean()


def _kernel(x: Tensor, y: Tensor, kernel: str, scale: Tensor | None) -> Tensor:
    """[B, Cx, Cy]: the kernel of every channel of x with every channel of y."""
    x, y = x[:, :, None, :], y[:, None, :, :]
    if kernel == "linear":
        return (x * y).sum(3)
    if kernel == "polynomial":
        return (x * y).sum(3) ** 2
    assert scale is not None
    return torch.exp(-((x - y) ** 2).sum(3) / (2 * scale[:, None, None]))


@torch.no_grad()
def _mean_square_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """[B]: over all pairs of an image's channels, whichever network they come from."""
    both = torch.cat([student, teacher], dim=1)
    distances = [((both - both[:, i : i + 1]) ** 2).sum(2) for i in range(both.shape[1])]
    return torch.stack(distances).mean((0, 2))
