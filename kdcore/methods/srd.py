"""Understanding the Role of the Projector in Knowledge Distillation.

Miles and Mikolajczyk, AAAI 2024, arXiv:2303.11098.

The authors combine it with `kd`, temperature 1 and weight 1, which is a separate term here.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps

# Of the authors' batch norms.
_EPSILON = 1e-4
# Lower bound for the norm of all differences, which keeps the logarithm finite.
_SMALLEST_DISTANCE = 0.01


def _normalized(embedding: Tensor) -> Tensor:
    """Batch norm without affine parameters, by the statistics of the batch."""
    centred = embedding - embedding.mean(0)
    return centred * (centred.square().mean(0) + _EPSILON).rsqrt()


@full_precision
def srd_loss(projected_embedding: Tensor, teacher_embedding: Tensor, *, exponent: float) -> Tensor:
    """Logarithm of the sum of |difference|^exponent over a batch of batch-normalised embeddings.

    The logarithm makes the gradient independent of the number of elements. Larger exponents
    approximate the maximum.

    Args:
        projected_embedding: [B, D], the student's, projected to the teacher's width.
        teacher_embedding: [B, D].
        exponent: >= 1.

    Returns:
        Scalar; may be negative. Smallest, exponent * log(0.01), where every unit equals the
        teacher's up to shift and positive factor; zero for a batch of one.
    """
    if len(projected_embedding) == 1:
        return projected_embedding.sum() * 0.0
    difference = _normalized(projected_embedding) - _normalized(teacher_embedding)
    total = difference.abs().pow(exponent).sum()
    return total.clamp(min=_SMALLEST_DISTANCE**exponent).log()


class SRD(Method):
    """A linear projector from the student's embedding to the teacher's, both batch-normalised."""

    paper: ClassVar[str] = "arXiv:2303.11098"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published(
            "the paper, beside kd", beside={"kd": {"weight": 1.0, "temperature": 1.0}}
        ),
        "imagenet": Published(
            "torchdistill, roymiles/aaai2024/srd-resnet18_from_resnet34.yaml",
            {"weight": 1.0},
            beside={"kd": {"weight": 1.0, "temperature": 1.0}},
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.EMBEDDING})
    compares_images: bool = True

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 10.0, log=True)] = 2.0
        exponent: Annotated[float, Field(ge=1, le=16), Span(1.0, 8.0, log=True)] = 4.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        # Without a bias, which batch norm would remove.
        self.projector = nn.Linear(
            networks.student.embedding_width, networks.teacher.embedding_width, bias=False
        )

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        projected = self.projector(student.embedding)
        return srd_loss(projected, teacher.embedding, exponent=self.params.exponent)
