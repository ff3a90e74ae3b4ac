"""The training of RepDistiller and mdistiller on CIFAR-100, plainly and without anything of kdcore.

Written from what RepDistiller's train_student.py and helper/, and mdistiller's engine/, distillers/
and configs/cifar100 do; the losses are the other twins'. Batches, their views and crd's contrast
indices are given. Networks and helpers name their weights as kdcore does, so that states can be
exchanged.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, relu

from tests.twins.at import naive_at
from tests.twins.crd import naive_crd, naive_log_normalizer
from tests.twins.dkd import naive_dkd
from tests.twins.kd import naive_kd
from tests.twins.ofd import naive_expected_margin, naive_ofd

EPOCHS, MILESTONES, WARMUP = 240, (150, 180, 210), 20
LEARNING_RATE, DECAY, MOMENTUM, WEIGHT_DECAY = 0.05, 0.1, 0.9, 5e-4


def learning_rate(epoch: int, milestones: Sequence[float]) -> float:
    """Of an epoch, from 1: a tenth once for each milestone that lies before it."""
    return LEARNING_RATE * DECAY ** sum(epoch > milestone for milestone in milestones)


# Networks


class Features(NamedTuple):
    """Outputs of a network: logits, the pooled vector, three stages before and after their ReLU."""

    logits: Tensor
    pooled: Tensor
    before: list[Tensor]
    after: list[Tensor]


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns their sum."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = nn.Sequential()
        if stride > 1 or inside != outside:
            self.downsample.append(nn.Conv2d(inside, outside, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(inner)) + self.downsample(x)


class ResNet(nn.Module):
    """CIFAR's residual network of depth 6n + 2, with 16, 32 and 64 channels."""

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        for number, (inside, outside) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            first = Block(inside, outside, 1 if number == 1 else 2)
            others = [Block(outside, outside, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *others))
        self.fc = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Features:
        x = relu(self.bn1(self.conv1(images)))
        before = []
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                total = block(x)
                x = relu(total)
            before.append(total)
        pooled = avg_pool2d(x, 8).flatten(1)
        return Features(self.fc(pooled), pooled, before, [relu(total) for total in before])


# Methods


class Given(NamedTuple):
    """A batch: views [B, 3, 32, 32] in bytes, labels, places in the training set, and, for crd, the
    places [B, 1 + K] of each image itself and of its negatives."""

    views: Tensor
    labels: Tensor
    places: Tensor
    contrast: Tensor | None


class Objective(nn.Module):
    """A method's term and its helpers; the objective is factor * cross-entropy + weight * term."""

    factor, weight = 1.0, 1.0
    teacher_trains = False  # whether the teacher's norms are in training mode

    def forward(self, student: Features, teacher: Features, batch: Given, epoch: int) -> Tensor:
        raise NotImplementedError


class KD(Objective):
    """RepDistiller's `-r 0.1 -a 0.9 -b 0`."""

    factor, weight = 0.1, 0.9

    def forward(self, student: Features, teacher: Features, batch: Given, epoch: int) -> Tensor:
        return naive_kd(student.logits, teacher.logits, temperature=4.0)


class DKD(Objective):
    """mdistiller's configs/cifar100/dkd/res56_res20.yaml."""

    def __init__(self, warmup: float) -> None:
        super().__init__()
        self.warmup = warmup

    def forward(self, student: Features, teacher: Features, batch: Given, epoch: int) -> Tensor:
        return min(epoch / self.warmup, 1.0) * naive_dkd(
            student.logits,
            teacher.logits,
            batch.labels,
            target_weight=1.0,
            nontarget_weight=2.0,
            temperature=4.0,
        )


class AT(Objective):
    """RepDistiller's `-a 0 -b 1000`: the three stages' attention."""

    weight = 1000.0

    def forward(self, student: Features, teacher: Features, batch: Given, epoch: int) -> Tensor:
        return sum(
            (naive_at(s, t, power=2) for s, t in zip(student.after, teacher.after, strict=True)),
            start=torch.zeros(()),
        )


class CRD(Objective):
    """mdistiller's CRD, RepDistiller's `-a 0 -b 0.8`, but for their epsilon."""

    weight = 0.8

    def __init__(self, images: int) -> None:
        super().__init__()
        self.student_embedding = nn.Linear(64, 128)
        self.teacher_embedding = nn.Linear(64, 128)
        self.register_buffer("student_memory", torch.empty(images, 128))
        self.register_buffer("teacher_memory", torch.empty(images, 128))
        self.register_buffer("log_normalizers", torch.full((2,), math.inf))  # until the first batch

    def forward(self, student: Features, teacher: Features, batch: Given, epoch: int) -> Tensor:
        ours = self.student_embedding(student.pooled)
        ours = ours / ours.norm(dim=1, keepdim=True)
        theirs = self.teacher_embedding(teacher.pooled)
        theirs = theirs / theirs.norm(dim=1, keepdim=True)
        with torch.no_grad():
            if self.log_normalizers.isinf().all():
                for place, (anchor, bank) in enumerate(
                    ((ours, self.teacher_memory), (theirs, self.student_memory))
                ):
                    self.log_normalizers[place] = naive_log_normalizer(
                        anchor, bank, batch.contrast, temperature=0.07
                    )
        loss = naive_crd(
            ours,
            theirs,
            self.student_memory,
            self.teacher_memory,
            batch.contrast,
            self.log_normalizers.clone(),
            temperature=0.07,
        )
        with torch.no_grad():
            for bank, seen in ((self.student_memory, ours), (self.teacher_memory, theirs)):
                for place, embedding in zip(batch.places.tolist(), seen, strict=True):
                    mixed = 0.5 * bank[place] + 0.5 * embedding
                    bank[place] = mixed / mixed.norm()
        return loss


class OFD(Objective):
    """mdistiller's OFD, whose `train` leaves the teacher in training mode too."""

    weight = 1e-3
    teacher_trains = True

    def __init__(self, teacher: ResNet) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
            for width in (16, 32, 64)
        )
        self.margins = [
            naive_expected_margin(stage[-1].bn2.weight, stage[-1].bn2.bias)
            for stage in (teacher.layer1, teacher.layer2, teacher.layer3)
        ]

    def forward(self, student: Features, teacher: Features, batch: Given, epoch: int) -> Tensor:
        total = torch.zeros(())
        for stage in range(3):
            adapted = self.connectors[stage](student.before[stage])
            loss = naive_ofd(
                adapted, teacher.before[stage], self.margins[stage], normalization="sum"
            )
            total = total + loss / 2 ** (2 - stage)
        return total


# Training


class Protocol:
    """Student and helpers under SGD, beside a frozen teacher.

    Args:
        student: trained in place.
        teacher: with its weights.
        objective: the method.
        milestones: the epochs after which the learning rate falls.
        mean: of the pixels, per channel.
        std: likewise.
    """

    def __init__(
        self,
        student: ResNet,
        teacher: ResNet,
        objective: Objective,
        *,
        milestones: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.trained = nn.ModuleDict({"student": student, "method": objective})
        self.teacher = teacher
        self.milestones = milestones
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        self.velocities = {
            name: torch.zeros_like(weight) for name, weight in self.trained.named_parameters()
        }

    def step(self, batch: Given, epoch: int) -> tuple[Tensor, Tensor]:
        """Trains on a batch; returns weighted cross-entropy and the weighted term."""
        student, objective = self.trained["student"], self.trained["method"]
        self.trained.train()
        self.teacher.train(objective.teacher_trains)
        # Pixels are float32 from 0 to 1, as torchvision's ToTensor makes them.
        images = (batch.views.float() / 255 - self.mean) / self.std
        outputs = student(images)
        with torch.no_grad():
            taught = self.teacher(images)
        labels = objective.factor * cross_entropy(outputs.logits, batch.labels)
        term = objective.weight * objective(outputs, taught, batch, epoch)
        self.trained.zero_grad()
        (labels + term).backward()
        rate = learning_rate(epoch, self.milestones)
        with torch.no_grad():
            for name, weight in self.trained.named_parameters():
                velocity = self.velocities[name]
                velocity.mul_(MOMENTUM).add_(weight.grad + WEIGHT_DECAY * weight)
                weight.sub_(rate * velocity)
        return labels.detach(), term.detach()

    def state(self) -> dict[str, Tensor]:
        """Weights, statistics, banks, momenta; and gradients, after a step."""
        state = dict(self.trained.state_dict())
        for name, weight in self.trained.named_parameters():
            state[f"{name}, momentum"] = self.velocities[name]
            if weight.grad is not None:
                state[f"{name}, gradient"] = weight.grad
        return state

    def take(self, state: dict[str, Tensor]) -> None:
        """Goes on from another training's state."""
        with torch.no_grad():
            for name, value in self.state().items():
                if not name.endswith("gradient"):
                    value.copy_(state[name])
