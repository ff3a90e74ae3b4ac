"""Accuracy and loss of a classifier, and the device to compute on."""

import torch
from torch.nn.functional import cross_entropy

from kdcore.data.split import Split
from kdcore.networks.classifier import Classifier


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def evaluate(classifier: Classifier, split: Split) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross-entropy (nats) on unaugmented images, in float32.

    Args:
        classifier: put into evaluation mode, and back.
        split: at least one image; may be on another device.
    """
    was_training = classifier.training
    classifier.eval()
    device = classifier.mean.device
    right = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    size = split.batch_without_gradients()
    every_label = torch.split(split.labels.to(device), size)
    for images, labels in zip(split.batches(size), every_label, strict=True):
        logits = classifier(images.to(device))
        right += (logits.argmax(1) == labels).sum()
        loss += cross_entropy(logits, labels, reduction="sum")
    classifier.train(was_training)
    return right.item() / len(split), loss.item() / len(split)
