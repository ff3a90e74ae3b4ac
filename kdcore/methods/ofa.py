"""One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation.

Hao, Guo, Han, Tang, Hu, Wang and Xu, NeurIPS 2023, arXiv:2310.19444.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from kdcore.contract import method
from kdcore.contract.method import Method, Mixing, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Mixed, Tap, Taps
from kdcore.errors import NetworkError
from kdcore.operations.connectors import ConnectorNorm
from kdcore.operations.labels import over_targets
from kdcore.operations.logits import check_classes


@full_precision
def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    enhancement: float,
    temperature: float,
    mixed: Mixed | None = None,
) -> Tensor:
    """Cross-entropy with the teacher's probabilities, of which the target's is enhanced.

    The target's weight is (1 + p)^enhancement - 1, which grows with the exponent, and that of other
    classes p^enhancement, which shrinks: what a teacher of another kind thinks of them counts less.
    So the authors' code has it.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        labels: [B], int64 classes, the targets.
        enhancement: the paper's gamma, > 0; with 1 it is plain cross-entropy with the teacher.
        temperature: > 0, without a factor of its square.
        mixed: the second classes, if images are mixed. Each of the two is the target once, and the
            two values are averaged by the shares: the mean over a target that is drawn by them.

    Returns:
        Scalar, nats, mean over the batch. Positive even when both logits are equal.
    """
    student = log_softmax(student_logits / temperature, dim=1)
    teacher = (teacher_logits / temperature).softmax(1)

    def of_targets(targets: Tensor) -> Tensor:
        target = torch.zeros_like(teacher).scatter(1, targets[:, None], 1.0)
        return -(((teacher + target).pow(enhancement) - target) * student).sum(1)

    return over_targets(of_targets, labels, mixed).mean()


def _halving(channels: int, outputs: int) -> nn.Sequential:
    """Two separable convolutions, of which the first halves the sides."""

    def separable(width: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            nn.Conv2d(channels, width, 1, bias=False),
            ConnectorNorm(width),
            nn.ReLU(),
        ]

    return nn.Sequential(*separable(channels, 2), *separable(outputs, 1))


class Exit(nn.Sequential):
    """Logits from a stage's map: convolutions for the stages that it leaves out, a mean, a layer.

    Args:
        channels: of the map.
        stages: that come after this one.
        width: features of the last layer.
        num_classes: K.
    """

    def __init__(self, channels: int, stages: int, width: int, num_classes: int) -> None:
        widths = [*(channels * 2**stage for stage in range(stages)), width]
        layers: list[nn.Module] = [_halving(*pair) for pair in pairwise(widths)]
        super().__init__(
            *(layers or [nn.Conv2d(channels, width, 1)]),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )


class OFA(Method):
    """Logits at exits of all stages, so that maps of another kind of network need not be alike."""

    paper: ClassVar[str] = "arXiv:2310.19444"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("OFAKD, train.py"),
        "imagenet": Published("OFAKD, README, DeiT-T to ResNet-18", {"enhancement": 1.5}),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS, Tap.MAPS})
    zero_at_equality: ClassVar[bool] = False
    mixing: ClassVar[Mixing] = "soft targets"

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 10.0, log=True)] = 1.0
        # Of all exits beside 1 of the student's own logits.
        exits_weight: Annotated[float, Field(ge=0), Span(0.1, 10.0, log=True)] = 1.0
        enhancement: Annotated[float, Field(gt=0), Span(1.0, 2.0)] = 1.0
        temperature: Annotated[float, Field(gt=0), Span(1.0, 8.0, log=True)] = 1.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)
        student = networks.student
        if not student.stages:
            raise NetworkError(
                f"{student.network} has no spatial maps, from which exits could start; use it with "
                f"methods that read logits or the embedding"
            )
        self.stages = student.stages
        width = max(student.embedding_width, networks.teacher.embedding_width)
        self.exits = nn.ModuleList(
            Exit(student.maps[stage][0], len(self.stages) - number, width, student.num_classes)
            for number, stage in enumerate(self.stages, start=1)
        )

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        def of(logits: Tensor) -> Tensor:
            return ofa_loss(
                *(logits, teacher.logits, batch.labels),
                enhancement=self.params.enhancement,
                temperature=self.params.temperature,
                mixed=batch.mixed,
            )

        losses = [
            of(leave(student.maps[stage]))
            for stage, leave in zip(self.stages, self.exits, strict=True)
        ]
        return of(student.logits) + self.params.exits_weight * sum(losses[1:], start=losses[0])
