"""The Gaussian log-likelihood of the paper, element by element."""

import torch
from torch import Tensor


def naive_vid(predicted_map: Tensor, teacher_map: Tensor, raw_variances: Tensor) -> Tensor:
    """Mean over all elements of (log variance + (t - mean)^2 / variance) / 2."""
    variances = (torch.log(1 + torch.exp(raw_variances)) + 1e-5)[None, :, None, None]
    squares = (teacher_map - predicted_map) ** 2
    return (0.5 * (torch.log(variances) + squares / variances)).mean()
