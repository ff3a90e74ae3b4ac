"""TODO-DOC"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Shapes:
    """A network's outputs without their batch dimension, measured on a probe image.

    Args:
        network: the network's name, for messages.
        stem: the name of the tap before the first stage; empty where the network shows no maps.
        stages: the names of the stages' taps, from the image to the classifier; empty where the
            network shows no maps.
        maps: by tap name (stem and stages), (C, H, W); equal before and after the activation.
        embedding_width: D.
        num_classes: K.
    """

    network: str
    stem: str
    stages: tuple[str, ...]
    maps: Mapping[str, tuple[int, int, int]]
    embedding_width: int
    num_classes: int


@dataclass(frozen=True)
class NetworkPair:
    """Where a method works; it is built from this before the optimiser exists.

    Args:
        student: shapes of the network that learns.
        teacher: shapes of the network that teaches.
        train_labels: [N], int64, the classes of the training images in the order of
            `Batch.indices`.
        teacher_norms: by tap name, the affine parameters (gamma, beta), each [C], of the batch norm
            whose output the activation reads, itself or added to a shortcut; taps without one are
            missing.
    """

    student: Shapes
    teacher: Shapes
    train_labels: Tensor
    teacher_norms: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def train_images(self) -> int:
        """N, the number of training images."""
        return len(self.train_labels)
