"""The paper's margin and partial distance, case by case."""

import math

import torch
from torch import Tensor


def naive_expected_margin(gamma: Tensor, beta: Tensor) -> Tensor:
    """E[x | x < 0] of a normal x, from erf; -3 deviations where x < 0 in less than 1 of 1,000."""
    margins = []
    for scale, mean in zip(gamma.tolist(), beta.tolist(), strict=True):
        deviation = abs(scale)
        share = 0.5 * math.erfc(mean / deviation / math.sqrt(2))
        density = math.exp(-((mean / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
        margins.append(mean - deviation * density / share if share > 1e-3 else -3 * deviation)
    return torch.tensor(margins, dtype=beta.dtype)


def naive_ofd(
    student_preactivation: Tensor,
    teacher_preactivation: Tensor,
    margin: Tensor,
    *,
    normalization: str,
) -> Tensor:
    s, t = student_preactivation, teacher_preactivation
    m = margin.view(1, -1, 1, 1).expand_as(t)
    at_margin = (s - m) ** 2 * ((t <= m) & (m <= 0) & (s > m)).to(s.dtype)
    above_margin = (s - t) ** 2 * ((t > m) & (t <= 0) & (s > t)).to(s.dtype)
    positive = (s - t) ** 2 * (t > 0).to(s.dtype)
    total = (at_margin + above_margin + positive).sum()
    return total / s.numel() if normalization == "mean" else total / len(s)
