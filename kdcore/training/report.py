"""TODO-DOC"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EpochReport:
    """What an epoch gave. Accuracies are shares of 1, losses in nats and means over images.

    Args:
        epoch: from 1.
        epochs: the run's budget.
        train_loss: cross-entropy plus weighted terms.
        train_terms: each term before its weight, by name: `cross_entropy`, `auxiliary` (the sum
            over the auxiliary classifiers of a network that has some), and the methods'.
        train_accuracy: on the augmented training images, while learning.
        heldout_accuracy: after the epoch, in float32.
        heldout_loss: cross-entropy, likewise.
        best_heldout_accuracy: of all epochs so far; equal ones are decided by the lower held-out
            loss.
        best_epoch: the epoch that it belongs to.
        learning_rate: of the last step.
        epoch_seconds: training and evaluation.
        teacher: where its outputs came from: `cached`; `computed` now for all; `live` in every
            step; `none` were needed.
        teacher_seconds_saved: what computing the cached outputs had taken.
        parts: that each batch went through the networks in, one after the other.
    """

    epoch: int
    epochs: int
    train_loss: float
    train_terms: dict[str, float]
    train_accuracy: float
    heldout_accuracy: float
    heldout_loss: float
    best_heldout_accuracy: float
    best_epoch: int
    learning_rate: float
    epoch_seconds: float
    teacher: Literal["none", "live", "computed", "cached"] = "none"
    teacher_seconds_saved: float = 0.0
    parts: int = 1
