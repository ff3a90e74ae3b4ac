"""The training loop of the field's repositories, for ours to be measured against.

PIL images through torchvision's transforms in a DataLoader, the teacher in every step, float32,
NCHW, plain SGD, and meters that read a number off the device three times a step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import (
    adaptive_avg_pool2d,
    cross_entropy,
    kl_div,
    log_softmax,
    normalize,
    softmax,
)
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdcore.backbones.backbone import Backbone
from kdcore.contract.layer_pairs import LayerPair
from kdcore.contract.taps import Tap, Taps
from kdcore.data.image_data import ImageData
from kdcore.data.split import TableSplit

BATCH = 64
_NEEDS = frozenset({Tap.MAPS})

Distance = Callable[[Taps, Taps], Tensor]


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Images as PIL gives them, one at a time."""

    def __init__(self, split: TableSplit, transform: Callable[[Any], Tensor]) -> None:
        # PIL takes H x W where there is one channel.
        self.pixels = split.images.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[position])), self.labels[position]


def training_loader(data: ImageData, workers: int) -> "DataLoader[tuple[Tensor, int]]":
    """Augmented training images in random order, batches of 64."""
    split = data.train
    assert isinstance(split, TableSplit)
    steps = [
        transforms.RandomCrop(data.image_size, padding=split.crop_padding),
        *([transforms.RandomHorizontalFlip()] if split.flip else []),
        transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std),
    ]
    pictures = _Pictures(split, transforms.Compose(steps))
    return DataLoader(pictures, BATCH, shuffle=True, num_workers=workers, drop_last=True)


def heldout_loader(data: ImageData) -> "DataLoader[tuple[Tensor, int]]":
    """Held-out images as they are, in order."""
    assert isinstance(data.heldout, TableSplit)
    steps = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    return DataLoader(_Pictures(data.heldout, transforms.Compose(steps)), BATCH)


def kd(weight: float, temperature: float) -> Distance:
    """Hinton et al., arXiv:1503.02531."""

    def distance(student: Taps, teacher: Taps) -> Tensor:
        divergence = kl_div(
            log_softmax(student.logits / temperature, dim=1),
            softmax(teacher.logits / temperature, dim=1),
            reduction="batchmean",
        )
        return weight * divergence * temperature**2

    return distance


def at(weight: float, pairs: Sequence[LayerPair]) -> Distance:
    """Zagoruyko and Komodakis, arXiv:1612.03928, as its authors' code has it."""

    def attention(activation: Tensor) -> Tensor:
        return normalize(activation.pow(2).mean(1).flatten(1))

    def difference(student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape[2] > teacher.shape[2]:
            student = adaptive_avg_pool2d(student, teacher.shape[2:])
        elif teacher.shape[2] > student.shape[2]:
            teacher = adaptive_avg_pool2d(teacher, student.shape[2:])
        return (attention(student) - attention(teacher)).pow(2).mean()

    def distance(student: Taps, teacher: Taps) -> Tensor:
        return weight * sum(
            (difference(student.maps[pair.student], teacher.maps[pair.teacher]) for pair in pairs),
            start=torch.zeros((), device=student.logits.device),
        )

    return distance


class Meter:
    """A running mean."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.total += value * count
        self.count += count

    @property
    def mean(self) -> float:
        return self.total / self.count


def _accuracy(logits: Tensor, labels: Tensor, places: int) -> float:
    """The share of images whose class is among the first places."""
    found = logits.topk(places, dim=1).indices == labels[:, None]
    return found.any(1).float().mean().item()


class ReferenceRun:
    """A student in training.

    Args:
        student: is trained in place.
        teacher: none where it learns from labels alone.
        distance: the distillation term; none likewise.
        learning_rate: of SGD.
        device: where to compute.
    """

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone | None,
        distance: Distance | None,
        learning_rate: float,
        device: torch.device,
    ) -> None:
        self.student = student.to(device).train()
        self.teacher = teacher.to(device).eval() if teacher is not None else None
        self.distance, self.device = distance, device
        self.optimizer = torch.optim.SGD(
            student.parameters(), learning_rate, momentum=0.9, weight_decay=5e-4
        )
        self.loss, self.first, self.first_five = Meter(), Meter(), Meter()

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Trains on normalised images [B, C, H, W], float32, and their classes [B]."""
        images, labels = images.to(self.device), labels.to(self.device)
        shown = self.student.taps(images, _NEEDS)
        loss = cross_entropy(shown.logits, labels)
        if self.teacher is not None and self.distance is not None:
            with torch.no_grad():
                taught = self.teacher.taps(images, _NEEDS)
            loss = loss + self.distance(shown, taught)
        self.loss.update(loss.item(), len(labels))
        self.first.update(_accuracy(shown.logits, labels, 1), len(labels))
        self.first_five.update(_accuracy(shown.logits, labels, 5), len(labels))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, loader: "DataLoader[tuple[Tensor, int]]") -> tuple[float, float]:
        """Accuracy, a share of 1, and cross-entropy in nats."""
        self.student.eval()
        accuracy, loss = Meter(), Meter()
        for images, on_host in loader:
            labels = on_host.to(self.device)
            logits = self.student(images.to(self.device))
            accuracy.update(_accuracy(logits, labels, 1), len(labels))
            loss.update(cross_entropy(logits, labels).item(), len(labels))
        self.student.train()
        return accuracy.mean, loss.mean
