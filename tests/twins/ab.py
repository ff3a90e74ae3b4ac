"""Equation 6 of the paper with a mask for each side, as the authors' and the field's codes do."""

import torch
from torch import Tensor


def naive_ab(
    student_preactivation: Tensor,
    teacher_preactivation: Tensor,
    *,
    margin: float,
    normalization: str,
) -> Tensor:
    s, t = student_preactivation, teacher_preactivation
    wrongly_active = ((t <= 0) & (s > -margin)).to(s.dtype)
    wrongly_silent = ((t > 0) & (s <= margin)).to(s.dtype)
    units = (s + margin) ** 2 * wrongly_active + (s - margin) ** 2 * wrongly_silent
    total = torch.abs(units).sum()
    if normalization == "mean":
        return total / s.numel()
    return total / len(s) / 1000 * 3
