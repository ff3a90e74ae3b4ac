"""The report of an epoch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EpochReport:
    """Results of an epoch. Accuracies are 0 to 1; losses are in nats, averaged over images.

    Args:
        epoch: from 1.
        epochs: of the whole run.
        train_loss: cross-entropy plus weighted terms.
        train_terms: unweighted terms by name: `cross_entropy`, `auxiliary` (summed over auxiliary
            classifiers, if the network has any), and those of the methods.
        train_accuracy: on augmented training images, during the epoch.
        heldout_accuracy: after the epoch, in float32.
        heldout_loss: cross-entropy after the epoch, in float32.
        best_heldout_accuracy: of all epochs so far; the lower held-out loss breaks ties.
        best_epoch: the epoch with that accuracy.
        learning_rate: of the last step.
        epoch_seconds: training and evaluation.
        teacher: where its outputs came from: `cached`, `computed` into the cache in this epoch,
            `live` in every step, or `none` if no term needs them.
        teacher_seconds_saved: seconds that the cached outputs had taken to compute.
        parts: into which each batch was split, where a whole one did not fit into memory.
        of_average: whether the held-out numbers are of the moving average of the student's weights,
            as it was better than the weights themselves.
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
    of_average: bool = False
