"""Information Theoretic Representation Distillation.

Miles, Lopez-Rodriguez and Mikolajczyk, BMVC 2022, arXiv:2112.00459.
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
from kdcore.operations.unit_vectors import unit_vectors

# Units that vary less over a batch count as constant, which bounds their gradient.
_SMALLEST_VARIANCE = 1e-6


def _standardized(embedding: Tensor) -> Tensor:
    """Scales each unit to mean 0 and unbiased variance 1 over the batch; constant units to 0."""
    centred = embedding - embedding.mean(0)
    variance = centred.square().sum(0) / (len(embedding) - 1)
    return centred * variance.clamp(min=_SMALLEST_VARIANCE).rsqrt()


@full_precision
def correlation_loss(
    projected_embedding: Tensor, teacher_embedding: Tensor, *, alpha: float
) -> Tensor:
    """Logarithm to base 2 of the sum over units of |correlation - 1|^(2 alpha).

    The correlation is the mean of the product of two standardised units. With the unbiased variance
    it is at most (B - 1) / B, which keeps the logarithm finite.

    Args:
        projected_embedding: [B, D], B >= 2, the student's, projected to the teacher's width.
        teacher_embedding: [B, D].
        alpha: >= 0.5, the order of the entropy from which the paper derives this loss.

    Returns:
        Scalar, bits; may be negative. Smallest, log2(D) - 2 alpha log2(B), when every unit equals
        the teacher's up to shift and positive factor.
    """
    products = _standardized(projected_embedding) * _standardized(teacher_embedding)
    return (products.mean(0) - 1).abs().pow(2 * alpha).sum().log2()


@full_precision
def mutual_information_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """|G_s|^2 - |G_s o G_t|^2, of Gram matrices of unit vectors, each scaled to trace 1.

    The sums of squares stand for entropies of order 2, of the student and of both networks; the
    third term of the mutual information, the teacher's entropy, is constant. As in the authors'
    code, there are no logarithms.

    Args:
        student_embedding: [B, Ds].
        teacher_embedding: [B, Dt]; the widths may differ.

    Returns:
        Scalar, 0 to 1 if no embedding is zero. Zero when any two images are orthogonal for the
        student or parallel for the teacher.
    """
    student, teacher = unit_vectors(student_embedding), unit_vectors(teacher_embedding)
    student_gram = student @ student.T
    joint_gram = student_gram * (teacher @ teacher.T)
    return _purity(student_gram) - _purity(joint_gram)


def _purity(gram: Tensor) -> Tensor:
    """Sum of squares of a Gram matrix scaled to trace 1; zero for a zero matrix."""
    # The trace counts the vectors that are not zero.
    return (gram / gram.trace().detach().clamp(min=1.0)).square().sum()


@full_precision
def itrd_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    projected_embedding: Tensor,
    *,
    alpha: float,
    correlation_weight: float,
    mutual_weight: float,
) -> Tensor:
    """The weighted sum of `correlation_loss` and `mutual_information_loss`.

    Args:
        student_embedding: [B, Ds], for the mutual information.
        teacher_embedding: [B, Dt].
        projected_embedding: [B, Dt], the student's, projected to the teacher's width, for the
            correlation.
        alpha: >= 0.5, of the correlation.
        correlation_weight: >= 0.
        mutual_weight: >= 0.

    Returns:
        Scalar, bits; may be negative. Zero for a batch of one.
    """
    if len(student_embedding) == 1:
        return (student_embedding.sum() + projected_embedding.sum()) * 0.0
    correlation = correlation_loss(projected_embedding, teacher_embedding, alpha=alpha)
    mutual = mutual_information_loss(student_embedding, teacher_embedding)
    return correlation_weight * correlation + mutual_weight * mutual


class ITRD(Method):
    """Correlation of single units, and mutual information of batches by matrix entropies."""

    paper: ClassVar[str] = "arXiv:2112.00459"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("ITRD, train_student.py"),
    }
    needs: frozenset[Tap] = frozenset({Tap.EMBEDDING})
    compares_images: bool = True

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 10.0, log=True)] = 1.0
        correlation_weight: Annotated[float, Field(ge=0)] = 2.0
        # 0.05 and 1.5 are the defaults of the authors' code; its example takes 1.0 and 1.01.
        mutual_weight: Annotated[float, Field(ge=0), Span(0.01, 2.0, log=True)] = 0.05
        alpha: Annotated[float, Field(ge=0.5, le=4), Span(1.01, 2.0)] = 1.5

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        width = networks.student.embedding_width, networks.teacher.embedding_width
        self.same_width = width[0] == width[1]
        # Without a bias: correlations do not see it.
        self.projector = nn.Linear(*width, bias=False)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        projected = self.projector(student.embedding)
        # As in the authors' code, the mutual information is projected only if the widths differ.
        return itrd_loss(
            student.embedding if self.same_width else projected,
            teacher.embedding,
            projected,
            alpha=self.params.alpha,
            correlation_weight=self.params.correlation_weight,
            mutual_weight=self.params.mutual_weight,
        )
