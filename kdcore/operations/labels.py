"""Losses of the labels, where images may be mixed of two."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcore.contract.taps import Mixed


def label_loss(
    logits: Tensor,
    labels: Tensor,
    mixed: Mixed | None = None,
    *,
    smoothing: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cross-entropy; of a mixed image with both classes, weighted by their shares.

    Args:
        logits: [B, K].
        labels: [B], int64 classes.
        mixed: the second classes, if images are mixed. A share of 1 gives the value without them,
            to the bit.
        smoothing: share of the target that all K classes have in equal parts, 0 to 1: Szegedy et
            al., 2015, arXiv:1512.00567, section 7.
        reduction: over the batch.

    Returns:
        Scalar, nats.
    """
    loss = cross_entropy(logits, labels, reduction=reduction, label_smoothing=smoothing)
    if mixed is None:
        return loss
    difference = label_losses(logits, mixed.labels) - label_losses(logits, labels)
    moved = (1 - smoothing) * (1 - mixed.shares) * difference
    return loss + (moved.mean() if reduction == "mean" else moved.sum())


def label_losses(logits: Tensor, labels: Tensor, mixed: Mixed | None = None) -> Tensor:
    """The same for each image, [B]."""
    return over_targets(
        lambda targets: cross_entropy(logits, targets, reduction="none"), labels, mixed
    )


def over_targets(
    of_targets: Callable[[Tensor], Tensor], labels: Tensor, mixed: Mixed | None
) -> Tensor:
    """A loss [B] for its targets: of a mixed image the mean over a target that is drawn by the
    shares of both classes.

    Args:
        of_targets: the loss [B] for target classes [B].
        labels: [B], int64 classes.
        mixed: the second classes, if images are mixed.
    """
    losses = of_targets(labels)
    return losses if mixed is None else mixed.expected(losses, of_targets(mixed.labels))
