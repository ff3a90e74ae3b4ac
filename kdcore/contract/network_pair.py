"""What a method is built from: shapes of both networks, parts of the teacher, the labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Shapes:
    """A network's outputs without their batch dimension, measured on a probe image.

    Args:
        network: its name, for messages.
        stem: name of the tap before the first stage; empty if the network has no maps.
        stages: names of the stages' taps, from image to classifier; empty if it has no maps.
        maps: (C, H, W) by tap name (stem, stages, and taps that are read only where a pair names
            them), the same before and after the activation.
        embedding_width: D.
        num_classes: K.
        class_map: (H, W) of the class maps; None if it has none.
        logits_only: whether it has nothing else that a method could read.
        distillation_head: whether it has a second head, with logits of its own in training.
    """

    network: str
    stem: str
    stages: tuple[str, ...]
    maps: Mapping[str, tuple[int, int, int]]
    embedding_width: int
    num_classes: int
    logits_only: bool = False
    class_map: tuple[int, int] | None = None
    distillation_head: bool = False


@dataclass(frozen=True)
class NetworkPair:
    """A student and a teacher. Methods are built from this, before the optimiser exists.

    Args:
        student: the student's shapes.
        teacher: the teacher's shapes.
        train_labels: [N], int64, the classes of the training images in the order of
            `Batch.indices`; -1 where a student learns without labels.
        teacher_norms: by tap name, gamma and beta, each [C], of the batch norm whose output the
            activation reads, by itself or added to a shortcut. Taps without a norm are missing.
        teacher_classifier: [K, D], the weight of the teacher's linear classifier. None where the
            teacher is not there yet, as before its training, or has no such classifier.
    """

    student: Shapes
    teacher: Shapes
    train_labels: Tensor
    teacher_norms: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    teacher_classifier: Tensor | None = None

    @property
    def train_images(self) -> int:
        """N, the number of training images."""
        return len(self.train_labels)
