"""What a student learns from labels: cross-entropy, also of its auxiliary classifiers."""

import torch
from torch import Tensor

from kdcore.contract.taps import Batch, Taps
from kdcore.operations.labels import label_loss


def label_terms(
    student: Taps, batch: Batch, *, smoothing: float, dtype: torch.dtype
) -> list[Tensor]:
    """The losses of a batch's labels, before weighting: scalars, in nats.

    Args:
        student: its outputs; with a strong view, either view has half of its cross-entropy.
        batch: the labels.
        smoothing: see `label_loss`.
        dtype: in which they are computed.

    Returns:
        Cross-entropy; and where there are auxiliary classifiers, the sum of theirs.
    """

    def loss(logits: Tensor) -> Tensor:
        return label_loss(logits.to(dtype), batch.labels, batch.mixed, smoothing=smoothing)

    first = loss(student.logits)
    if student.strong_logits is not None:
        first = (first + loss(student.strong_logits)) / 2
    if not student.auxiliary_logits:
        return [first]
    return [first, torch.stack([loss(each) for each in student.auxiliary_logits]).sum()]
