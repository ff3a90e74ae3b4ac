"""Cross-entropy with the labels."""

from torch import Tensor
from torch.nn.functional import cross_entropy


def label_loss(logits: Tensor, labels: Tensor, *, smoothing: float) -> Tensor:
    """Cross-entropy with smoothed labels: Szegedy et al., 2015, arXiv:1512.00567, section 7.

    Args:
        logits: [B, K].
        labels: [B], int64.
        smoothing: share of the target that all K classes have in equal parts, 0 to 1.

    Returns:
        Scalar, nats, mean over the batch.
    """
    return cross_entropy(logits, labels, label_smoothing=smoothing)
