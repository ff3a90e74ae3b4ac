"""The report of an epoch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kdcore.training.metric import Metric


@dataclass(frozen=True)
class EpochReport:
    """Results of an epoch. Accuracies are 0 to 1; losses are in nats, averaged over images.

    Args:
        epoch: from 1.
        epochs: of the whole run.
        train_loss: cross-entropy plus weighted terms.
        train_terms: unweighted terms by name: `cross_entropy`, `auxiliary` (summed over auxiliary
            classifiers, if the network has any), and those of the methods; only these where a
            student learns without labels.
        train_accuracy: on augmented training images, during the epoch; None without labels.
        heldout_accuracy: after the epoch, in float32; where the data has a judge, as it finds it.
        heldout_loss: cross-entropy after the epoch, in float32.
        best_heldout_accuracy: of the best epoch so far, by the accuracy or another metric that
            ranks; the lower held-out loss breaks ties.
        best_epoch: that epoch.
        learning_rate: of the last step.
        epoch_seconds: training and evaluation.
        teacher: where its outputs came from: `cached`, `computed` into the cache in this epoch,
            `live` in every step, or `none` if no term needs them.
        teacher_seconds_saved: seconds that the cached outputs had taken to compute.
        seconds_by_part: where they went: `decoding` (waiting for images that are read and decoded),
            `augmenting` (likewise, for what else is done to them), `teacher` (computing its outputs
            or reading cached ones), `student` (forward, backward, step), `evaluation` and
            `checkpoint`. Decoding processes work ahead, so that only what training waits for
            counts; it is divided as they divided their work. See `Timeline` for GPUs.
        parts: into which each batch was split, where a whole one did not fit into memory.
        of_average: whether the held-out numbers are of the moving average of the student's weights,
            as it was better than the weights themselves.
        heldout_balanced_accuracy: mean of the classes' recalls, as `heldout_accuracy`.
        heldout_top5: share of the images whose class is among the five best; None with fewer than
            20 classes.
        best_score: of the best epoch, by the metric that ranks; None where that is the accuracy.
    """

    epoch: int
    epochs: int
    train_loss: float
    train_terms: dict[str, float]
    train_accuracy: float | None
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
    seconds_by_part: Mapping[str, float] = field(default_factory=dict, compare=False)
    heldout_balanced_accuracy: float | None = None
    heldout_top5: float | None = None
    best_score: float | None = None

    def score_by(self, metric: Metric) -> float | None:
        """The epoch's own, by a metric other than the accuracy; None for that."""
        other = {"balanced_accuracy": self.heldout_balanced_accuracy, "top5": self.heldout_top5}
        return other.get(metric)
