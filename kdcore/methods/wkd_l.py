"""Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation.

Lv, Yang and Li, NeurIPS 2024, arXiv:2412.08139: WKD-L, of logits. Its other half is `wkd_f`.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from kdcore.contract import method
from kdcore.contract.method import Method, Mixing, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Mixed, Tap, Taps
from kdcore.errors import NetworkError
from kdcore.operations.labels import over_targets
from kdcore.operations.logits import check_classes
from kdcore.operations.unit_vectors import unit_vectors
from kdcore.operations.warmup import cosine_decay


def transport_cost(classifier: Tensor, *, sharpness: float) -> Tensor:
    """What it costs to move probability from one class to another.

    Args:
        classifier: [K, D], a row for each class: classes with similar rows are near each other.
        sharpness: > 0, the paper's kappa; larger ones make all classes equally far.

    Returns:
        [K, K], 1 - exp(-sharpness * (1 - cosine)), 0 to 1, with 0 on the diagonal.
    """
    rows = unit_vectors(classifier)
    distances = (1 - rows @ rows.T).clamp(min=0).fill_diagonal_(0)
    return 1 - (-sharpness * distances).exp()


def transport_distance(
    student: Tensor,
    teacher: Tensor,
    left_out: Tensor,
    cost: Tensor,
    *,
    regularization: float,
    iterations: int,
) -> Tensor:
    """The cost of the entropic optimal transport between two distributions, by Sinkhorn.

    The iterations are those of the authors, and the gradient goes through them. All images share
    one kernel: the class that is left out has no mass, and so no part in the plan.

    Args:
        student: [B, K], probabilities, 0 for the class that is left out.
        teacher: [B, K], the same.
        left_out: [B], int64 classes.
        cost: [K, K], 0 to 1.
        regularization: weight of the plan's entropy, >= 0.02: exp(-1 / regularization) is the
            least element of the kernel, and must not be 0.
        iterations: >= 1.

    Returns:
        [B]. Not 0 for equal distributions: entropy spreads the plan.
    """
    kernel = (-cost / regularization).exp()
    left = right = torch.ones_like(student).scatter(1, left_out[:, None], 0.0)
    for _ in range(iterations):
        right = teacher / (left @ kernel)
        left = student / (right @ kernel.T)
    return ((left @ (kernel * cost)) * right).sum(1)


@full_precision
def wkd_l_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    *,
    transport_weight: float,
    temperature: float,
    regularization: float,
    iterations: int,
    mixed: Mixed | None = None,
) -> Tensor:
    """Cross-entropy of the target, and Wasserstein's distance between the other classes.

    KL compares class by class; here a student that takes a cat for a dog is nearer to the teacher
    than one that takes it for a lorry, if the teacher's classifier has dogs near cats.

    Args:
        student_logits: [B, K], K >= 3; with two classes there is nothing to move.
        teacher_logits: [B, K].
        labels: [B], int64 classes, the targets.
        cost: [K, K], of moving probability from one class to another, 0 to 1.
        transport_weight: of the second part, the paper's lambda, >= 0.
        temperature: > 0, of the second part, without a factor of its square.
        regularization: as in `transport_distance`.
        iterations: as in `transport_distance`.
        mixed: the second classes, if images are mixed. Each of the two is the target once, and the
            two values are averaged by the shares: the mean over a target that is drawn by them.

    Returns:
        Scalar, mean over the batch. Positive even when both logits are equal.
    """

    def of_targets(targets: Tensor) -> Tensor:
        probability = log_softmax(teacher_logits, dim=1).gather(1, targets[:, None]).squeeze(1)
        target = nll_loss(log_softmax(student_logits, dim=1), targets, reduction="none")
        student, teacher = (
            (logits / temperature).scatter(1, targets[:, None], -float("inf")).softmax(1)
            for logits in (student_logits, teacher_logits)
        )
        moved = transport_distance(
            *(student, teacher, targets, cost), regularization=regularization, iterations=iterations
        )
        return probability.exp() * target + transport_weight * moved

    return over_targets(of_targets, labels, mixed).mean()


class WKDL(Method):
    """What it costs to move the student's probabilities to the teacher's, from class to class."""

    paper: ClassVar[str] = "arXiv:2412.08139"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        # There with costs from centred kernel alignment of the teacher's features; from its
        # classifier, as here, with COST_MATRIX: fc.
        "cifar": Published("WKD, configs/cifar100/wkd_l/res32x4_res8x4.yaml"),
        "imagenet": Published(
            "WKD, configs/imagenet/r34_r18/wkd_l.yaml",
            {"transport_weight": 30.0, "temperature": 2.0, "decay_start": 0.0},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})
    zero_at_equality: ClassVar[bool] = False
    mixing: ClassVar[Mixing] = "soft targets"

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 10.0, log=True)] = 1.0
        # 600 on CIFAR-100, 30 on ImageNet.
        transport_weight: Annotated[float, Field(ge=0), Span(10.0, 1000.0, log=True)] = 600.0
        temperature: Annotated[float, Field(gt=0), Span(1.0, 16.0, log=True)] = 8.0
        sharpness: Annotated[float, Field(gt=0)] = 1.0
        regularization: Annotated[float, Field(ge=0.02, le=1)] = 0.05
        iterations: Annotated[int, Field(ge=1, le=100)] = 10
        # The transport's weight falls to 0 after this share of the epochs: 150 of 240.
        decay_start: Annotated[float, Field(ge=0, le=1), Span(0.0, 1.0)] = 150 / 240

    params: Params
    cost: Tensor

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks, at_least=3)
        if networks.teacher.logits_only:
            raise NetworkError(
                f"it reads the teacher's classifier, but {networks.teacher.network} has logits "
                f"alone; use other methods that read logits with it, or one of its networks"
            )
        rows = networks.teacher_classifier
        if rows is None:  # a teacher that is not there yet, or has no plain layer: all equally far
            rows = torch.eye(networks.teacher.num_classes)
        cost = transport_cost(rows.to(torch.get_default_dtype()), sharpness=params.sharpness)
        self.register_buffer("cost", cost)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        factor = cosine_decay(batch.epoch, batch.epochs, start=self.params.decay_start)
        return wkd_l_loss(
            student.logits,
            teacher.logits,
            batch.labels,
            self.cost,
            transport_weight=factor * self.params.transport_weight,
            temperature=self.params.temperature,
            regularization=self.params.regularization,
            iterations=self.params.iterations,
            mixed=batch.mixed,
        )
