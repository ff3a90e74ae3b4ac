"""The networks that are proposed, and how each kind of them is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.experiment.proposal.pretrained import Pretrained


@dataclass(frozen=True)
class Network:
    """A network to propose.

    Args:
        backbone: its name.
        weights: that it begins with; empty for fresh ones.
    """

    backbone: str
    weights: str = ""

    @property
    def value(self) -> str | dict[str, str]:
        """As a student in the file."""
        if not self.weights:
            return self.backbone
        return {"backbone": self.backbone, "weights": self.weights}


@dataclass(frozen=True)
class Kind:
    """Networks to choose from, the smallest first, and how they are trained.

    Args:
        teachers: that may teach.
        students: that may learn.
        share: of the teacher's multiply-adds that a student has at most.
        recipe: its keys with their reasons; the learning rate is for a batch of 64.
        images_on_cpu: that a student sees in a trial.
        images_on_gpu: likewise.
        epochs: the fewest and the most.
        what: the networks in words.
    """

    teachers: Sequence[Network]
    students: Sequence[Network]
    share: float
    recipe: Mapping[str, tuple[Any, str]]
    images_on_cpu: int
    images_on_gpu: int
    epochs: tuple[int, int]
    what: str


def fine_tuned(networks: Sequence[Pretrained]) -> Kind:
    """Pretrained networks, which teach and learn; larger files are taken for larger networks."""
    by_size = sorted(networks, key=lambda each: each.file.stat().st_size)
    several = [Network(each.backbone, each.weights) for each in by_size]
    return Kind(
        teachers=several,
        students=several,
        share=0.5,
        recipe={
            "optimizer": ("adamw", "usual for fine-tuning"),
            "learning_rate": (1e-3, "at this batch; the rest only adapts to a new head"),
            "weight_decay": (0.05, "usual for AdamW"),
            "decay_norms_and_biases": (False, "likewise"),
            "warmup_epochs": (1, "a fresh head does not bear the full rate at once"),
        },
        images_on_cpu=40_000,
        images_on_gpu=500_000,
        epochs=(5, 60),
        what="pretrained, which begins far ahead of fresh weights",
    )


def _fresh(teachers: Sequence[str], students: Sequence[str], rate: float, what: str) -> Kind:
    recipe = {
        "learning_rate": (rate, "usual for SGD from fresh weights, at this batch"),
        "warmup_epochs": (1, "fresh weights do not bear the full rate at once"),
    }
    return Kind(
        teachers=[Network(name) for name in teachers],
        students=[Network(name) for name in students],
        share=0.25,
        recipe=recipe,
        images_on_cpu=200_000,
        images_on_gpu=4_000_000,
        epochs=(15, 100),
        what=what,
    )


SMALL = _fresh(
    ("resnet32", "resnet56", "resnet8x4", "wrn_40_2", "resnet32x4"),
    ("resnet8", "resnet14", "resnet20", "wrn_16_2", "resnet8x4"),
    0.1,
    "of CIFAR's literature, whose first layers keep the resolution",
)
IMAGENET_SIDE = 64
LARGE = _fresh(
    ("resnet18", "resnet34", "resnet50"),
    (
        "torchvision/shufflenet_v2_x0_5",
        "torchvision/mobilenet_v3_small",
        "torchvision/shufflenet_v2_x1_0",
        "torchvision/mobilenet_v2",
        "resnet18",
    ),
    0.05,
    "in ImageNet's form",
)
