"""Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons.

Heo, Lee, Yun and Choi, AAAI 2019, arXiv:1811.03233.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kdcore.contract.layer_pairs import ALL, resolve_layers
from kdcore.contract.method import full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import LayerChoice, Span
from kdcore.contract.staged_method import StagedMethod
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.connectors import connector
from kdcore.operations.match_spatial import match_spatial

Normalization = Literal["sum", "mean"]

# In the authors' code for CIFAR: the sum over a batch, divided by its images, / 1000 * 3.
_SCALE_OF_SUM = 3e-3


@full_precision
def ab_loss(
    student_preactivation: Tensor,
    teacher_preactivation: Tensor,
    *,
    margin: float,
    normalization: Normalization,
) -> Tensor:
    """Squared hinge on the sign of every unit (equations 3 to 6).

    Where the teacher's unit is active (> 0), max(0, margin - s)^2; elsewhere max(0, margin + s)^2.

    Args:
        student_preactivation: [B, C, H, W], after the connector.
        teacher_preactivation: [B, C, H, W]; only signs are used, and 0 is inactive.
        margin: >= 0, required distance of the student from zero.
        normalization: `sum`: 3/1000 of the sum over an image's units, as in the authors' code,
            which grows with the map; `mean` over the units. Either is a mean over the batch.

    Returns:
        Scalar. Zero when every student unit has the teacher's sign and at least the margin.
    """
    student = student_preactivation
    # The hinge is the squared distance to the nearest value beyond the margin, with the same
    # gradient. It takes one pass forward and one backward; masks would take ten.
    nearest = torch.where(
        teacher_preactivation > 0,
        student.detach().clamp(min=margin),
        student.detach().clamp(max=-margin),
    )
    if normalization == "mean":
        return mse_loss(student, nearest)
    return mse_loss(student, nearest, reduction="sum") * (_SCALE_OF_SUM / len(student))


class AB(StagedMethod):
    """Activation boundaries: initialises the student by which units are active, not how much."""

    paper: ClassVar[str] = "arXiv:1811.03233"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
    }
    needs: frozenset[Tap] = frozenset({Tap.PREACTIVATIONS})
    zero_at_equality: ClassVar[bool] = False

    class Params(StagedMethod.Params):
        """The parameters of AB.

        Args:
            weight: in the joint mode.
            preparation_share: share of the epochs that minimise the term alone; the others
                minimise cross-entropy. 0 for the joint mode.
            margin: required distance of the student from zero.
            normalization: `sum` over the units of a map, as published, or `mean`, whose scale does
                not depend on the image size.
            layers: their losses have weights 1, 1/2, 1/4, ... from the last to the first.
        """

        weight: Annotated[float, Field(ge=0), Span(0.01, 10.0, log=True)] = 1.0
        margin: Annotated[float, Field(gt=0), Span(0.25, 4.0, log=True)] = 1.0
        normalization: Normalization = "sum"
        layers: Annotated[str, LayerChoice()] = ALL

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)
        self.connectors = nn.ModuleList()
        for pair in self.pairs:
            student_channels = networks.student.maps[pair.student][0]
            teacher_channels = networks.teacher.maps[pair.teacher][0]
            self.connectors.append(
                nn.Identity()
                if student_channels == teacher_channels
                else connector(student_channels, teacher_channels, relu=False)
            )

    def term(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = []
        for pair, to_teacher in zip(self.pairs, self.connectors, strict=True):
            student_map, teacher_map = match_spatial(
                student.preactivations[pair.student], teacher.preactivations[pair.teacher]
            )
            losses.append(
                ab_loss(
                    to_teacher(student_map),
                    teacher_map,
                    margin=self.params.margin,
                    normalization=self.params.normalization,
                )
            )
        weighted = [0.5**depth * loss for depth, loss in enumerate(reversed(losses))]
        return sum(weighted[1:], start=weighted[0])
