"""A Gift from Knowledge Distillation: Fast Optimization, Network Minimization, Transfer Learning.

Yim, Joo, Bae and Kim, CVPR 2017, doi:10.1109/CVPR.2017.754.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, mse_loss

from kdcore.contract.layer_pairs import LayerPair, equal_depth_pairs
from kdcore.contract.method import full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.staged_method import StagedMethod
from kdcore.contract.taps import Batch, Tap, Taps


def flow(lower_map: Tensor, upper_map: Tensor) -> Tensor:
    """The FSP matrix: inner products of the channels of two maps, averaged over positions.

    Args:
        lower_map: [B, C1, H1, W1].
        upper_map: [B, C2, H2, W2]; whichever map is larger in a direction is max-pooled to the
            smaller, as in the paper.

    Returns:
        [B, C1, C2].
    """
    size = (
        min(lower_map.shape[2], upper_map.shape[2]),
        min(lower_map.shape[3], upper_map.shape[3]),
    )
    lower, upper = (
        each if tuple(each.shape[2:]) == size else adaptive_max_pool2d(each, size)
        for each in (lower_map, upper_map)
    )
    # Each map is divided by the square root of the number of positions, rather than the product by
    # that number, so that sums of 3,136 products stay small.
    scale = (size[0] * size[1]) ** -0.5
    matrix: Tensor = (lower.flatten(2) * scale) @ (upper.flatten(2) * scale).mT
    return matrix


@full_precision
def fsp_loss(
    student_lower_map: Tensor,
    student_upper_map: Tensor,
    teacher_lower_map: Tensor,
    teacher_upper_map: Tensor,
) -> Tensor:
    """Mean squared difference of the flows between two layers of each network.

    Args:
        student_lower_map: [B, C1, H, W], the sizes of all four maps may differ.
        student_upper_map: [B, C2, H, W].
        teacher_lower_map: [B, C1, H, W].
        teacher_upper_map: [B, C2, H, W].

    Returns:
        Scalar, mean over batch and pairs of channels, where the paper has sums. Zero when both
        networks have the same flow.
    """
    student = flow(student_lower_map, student_upper_map)
    return mse_loss(student, flow(teacher_lower_map, teacher_upper_map))


class FSP(StagedMethod):
    """Flow of solution procedure: initialises the student by products of channels of stages."""

    paper: ClassVar[str] = "doi:10.1109/CVPR.2017.754"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS})

    class Params(StagedMethod.Params):
        """The parameters of FSP.

        Args:
            weight: in the joint mode.
            preparation_share: share of the epochs that minimise the term alone; the others
                minimise cross-entropy. 0 for the joint mode.
        """

        weight: Annotated[float, Field(ge=0), Span(0.1, 1e3, log=True)] = 50.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        student, teacher = networks.student, networks.teacher
        stages = equal_depth_pairs(student, teacher)
        self.pairs = (LayerPair(student.stem, teacher.stem), *stages)
        # The paper requires equal channels; adapters make it work without.
        self.adapters = nn.ModuleList()
        for pair in self.pairs:
            student_channels = student.maps[pair.student][0]
            teacher_channels = teacher.maps[pair.teacher][0]
            self.adapters.append(
                nn.Identity()
                if student_channels == teacher_channels
                else nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
            )

    def term(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        steps = []
        for pair, adapter in zip(self.pairs, self.adapters, strict=True):
            steps.append((adapter(student.maps[pair.student]), teacher.maps[pair.teacher]))
        losses = [
            fsp_loss(student_lower, student_upper, teacher_lower, teacher_upper)
            for (student_lower, teacher_lower), (student_upper, teacher_upper) in pairwise(steps)
        ]
        return sum(losses[1:], start=losses[0])
