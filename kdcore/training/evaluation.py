"""How well a classifier does on a split, and the device to compute on."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcore.data.split import Split
from kdcore.networks.classifier import Classifier
from kdcore.training.metric import FEWEST_FOR_TOP5, Metric, check_metric


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class OfClass(NamedTuple):
    """A class's images: how many there are, the share of them that is found, and the share of right
    ones among those that are taken for it; None where there are none to take a share of."""

    support: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class Evaluation:
    """How well a classifier tells the classes of some images apart.

    Args:
        labels: [N], int64.
        predictions: [N], int64, the class with the largest logit.
        num_classes: K.
        loss: mean cross-entropy, nats.
        top5: share of the images whose class is among the five with the largest logits; None with
            fewer than 20 classes.
    """

    labels: Tensor
    predictions: Tensor
    num_classes: int
    loss: float
    top5: float | None

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified right."""
        return int((self.predictions == self.labels).sum()) / len(self.labels)

    @cached_property
    def confusion(self) -> Tensor:
        """[K, K], int64: images by class and, along the second dimension, by prediction."""
        cells = self.labels * self.num_classes + self.predictions
        counts = torch.bincount(cells, minlength=self.num_classes**2)
        return counts.view(self.num_classes, self.num_classes).cpu()

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the classes' recalls, from 0 to 1; classes without images are left out."""
        seen = torch.bincount(self.labels, minlength=self.num_classes)
        right = self.labels[self.predictions == self.labels]
        recalled = torch.bincount(right, minlength=self.num_classes)
        return (recalled[seen > 0].double() / seen[seen > 0]).mean().item()

    def classes(self) -> list["OfClass"]:
        """What is known of each class, in the order of the logits."""
        support, taken = self.confusion.sum(1).tolist(), self.confusion.sum(0).tolist()
        right = self.confusion.diagonal().tolist()
        return [
            OfClass(number, hits / number if number else None, hits / found if found else None)
            for number, found, hits in zip(support, taken, right, strict=True)
        ]

    def by(self, metric: Metric) -> float:
        """One of the numbers that a search can rank by.

        Raises:
            ConfigError: it is not defined for so few classes.
        """
        if metric == "accuracy":
            return self.accuracy
        if metric == "balanced_accuracy":
            return self.balanced_accuracy
        check_metric(metric, self.num_classes)
        assert self.top5 is not None
        return self.top5


def heldout_metrics(found: Evaluation) -> dict[str, float]:
    """The numbers of an evaluation on held-out images, by their names in a card."""
    metrics = {
        "heldout_accuracy": found.accuracy,
        "heldout_loss": found.loss,
        "heldout_balanced_accuracy": found.balanced_accuracy,
    }
    return metrics if found.top5 is None else metrics | {"heldout_top5": found.top5}


def evaluate(classifier: Classifier, split: Split) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross-entropy (nats); see `evaluate_classes`."""
    found = evaluate_classes(classifier, split)
    return found.accuracy, found.loss


def evaluation_of(logits: Tensor, labels: Tensor) -> Evaluation:
    """How well logits [N, K] tell the classes [N] of images apart; N >= 1."""
    num_classes, top5 = logits.shape[1], None
    if num_classes >= FEWEST_FOR_TOP5:
        top5 = (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    loss = cross_entropy(logits.double(), labels).item()
    return Evaluation(labels, logits.argmax(1), num_classes, loss, top5)


@torch.no_grad()
def evaluate_classes(classifier: Classifier, split: Split) -> Evaluation:
    """Classifies unaugmented images, in float32.

    Args:
        classifier: put into evaluation mode, and back.
        split: at least one image; may be on another device.
    """
    was_training = classifier.training
    classifier.eval()
    device = classifier.mean.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    among_five = torch.zeros((), dtype=torch.int64, device=device)
    predictions = []
    num_classes = classifier.backbone.num_classes
    size = split.batch_without_gradients()
    labels = split.labels.to(device)
    for images, those in zip(split.batches(size), torch.split(labels, size), strict=True):
        logits = classifier(images.to(device))
        predictions.append(logits.argmax(1))
        if num_classes >= FEWEST_FOR_TOP5:
            among_five += (logits.topk(5).indices == those[:, None]).sum()
        loss += cross_entropy(logits, those, reduction="sum")
    classifier.train(was_training)
    count = len(split)
    return Evaluation(
        labels,
        torch.cat(predictions),
        num_classes,
        loss.item() / count,
        among_five.item() / count if num_classes >= FEWEST_FOR_TOP5 else None,
    )
