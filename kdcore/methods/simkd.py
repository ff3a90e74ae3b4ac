"""Knowledge Distillation with the Reused Teacher Classifier. Chen, Mei, Zhang, Wang, Feng and Chen,
CVPR 2022, arXiv:2203.14001.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import check_classes
from kdcore.operations.match_spatial import match_spatial


@full_precision
def simkd_loss(projected_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the maps that the classifier's mean is taken of (equation 5).

    Args:
        projected_map: [B, D, Hs, Ws], the student's, projected to the teacher's channels.
        teacher_map: [B, D, Ht, Wt].

    Returns:
        Scalar, mean over images, channels and positions; of maps of unlike sizes the larger one is
        pooled. Zero when both maps are equal.
    """
    student, teacher = match_spatial(projected_map, teacher_map)
    return (student - teacher).square().mean()


class SimKD(Method):
    """The teacher's last map, whose classifier the student takes over behind a projector."""

    paper: ClassVar[str] = "arXiv:2203.14001"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        # The same on ImageNet.
        "cifar": Published("SimKD, scripts/run_distill.sh"),
    }
    needs: frozenset[Tap] = frozenset({Tap.POOLED_MAP})
    reuses_classifier: ClassVar[bool] = True

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 10.0, log=True)] = 1.0
        # No labels: the classifier stays as it is.
        cross_entropy: Annotated[float, Field(ge=0)] = 0.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.pooled_map is not None
        assert teacher.pooled_map is not None
        return simkd_loss(student.pooled_map, teacher.pooled_map)
