"""VkD: Improving Knowledge Distillation using Orthogonal Projections. Miles, Elezi and Deng,
CVPR 2024, arXiv:2403.06213.

The authors combine it with `kd`, temperature 1 and weight 1, which is a separate term here.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import layer_norm, smooth_l1_loss

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.orthogonal import OrthogonalProjector


@full_precision
def vkd_loss(projected_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Smooth L1 distance to the teacher's standardised embedding.

    Args:
        projected_embedding: [B, D], the student's, projected to the teacher's width.
        teacher_embedding: [B, D]; each image's is standardised over its units, which the paper
            finds best for classification.

    Returns:
        Scalar, mean over all elements: half the square of differences up to 1, and their magnitude
        less 1/2 beyond. Zero when the projected embedding is the standardised one.
    """
    target = layer_norm(teacher_embedding, teacher_embedding.shape[1:])
    return smooth_l1_loss(projected_embedding, target)


class VKD(Method):
    """The student's embedding, only turned to the teacher's width, equals the standardised one."""

    paper: ClassVar[str] = "arXiv:2403.06213"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        # On ImageNet alone, from RegNetY-160 to DeiT.
        "cifar": Published(
            "VkD, main_distributed.py, beside kd",
            beside={"kd": {"weight": 1.0, "temperature": 1.0}},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.EMBEDDING})
    # Weight decay would pull the projection to the first columns of the identity.
    undecayed: ClassVar[frozenset[str]] = frozenset({"projector.weight"})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 100.0, log=True)] = 1.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        # Orthonormal: it keeps all similarities, so that the student learns and not the projector.
        self.projector = OrthogonalProjector(
            networks.student.embedding_width, networks.teacher.embedding_width
        )

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return vkd_loss(self.projector(student.embedding), teacher.embedding)
