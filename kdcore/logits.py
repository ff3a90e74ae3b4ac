"""Logits prepared for a comparison."""

from torch import Tensor

# Keeps the gradient finite for constant logits; ordinary logits have deviations of 1 to 10.
_FLAT = 1e-4


def standardized(logits: Tensor) -> Tensor:
    """Each row shifted to mean 0 and scaled to standard deviation 1 over the classes.

    Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv:2403.01427.

    Args:
        logits: [B, K], K >= 2.

    Returns:
        [B, K]; zeros for constant rows, with a finite gradient.
    """
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / (logits.shape[1] - 1)
    return centred / (variance + _FLAT**2).sqrt()
